"""Where parts are encoded: what every engine does, and the one that the settings name."""

from collections.abc import Callable
from typing import Protocol

from pipeline.config import PrepareOptions
from pipeline.prepare.cutting import Part
from pipeline.prepare.encode.segment_encoder import EncodingSettings
from pipeline.store.chunk_cache import PartInfo, PartStore

Result = Callable[[], PartInfo]
"""Waits for a part that was handed over; it is in the store then."""


class Engine(Protocol):
    """Encodes parts and puts them into a store, each with the bytes that any engine gives it."""

    @property
    def slots(self) -> int:
        """How many parts may be under way at a time."""

    def start(self) -> None:
        """Start the workers now, where there is surely work for them."""

    def use(self, settings: EncodingSettings) -> None:
        """Say how parts are encoded; before the first of them is handed over."""

    def submit(self, part: Part, key: str) -> Result:
        """Hand over a part."""

    def encode_here(self, part: Part, key: str) -> PartInfo:
        """Encode a part in this process."""

    def close(self) -> None:
        """Let all workers go, without waiting for what they have not begun."""


def make_engine(config: PrepareOptions, store: PartStore) -> Engine:
    """Return the engine that ``--engine`` names; nothing is started yet.

    Raises:
        ConfigError: It is not installed.
    """
    # Imported late: one of them is used.
    if config.engine == "ray":
        from pipeline.prepare.engines.ray_engine import RayEngine

        return RayEngine(store, config.ray_address, config.num_workers)
    from pipeline.prepare.engines.local import LocalEngine

    return LocalEngine(store, config.num_workers)
