"""What a Ray worker runs: one part, in a folder of the node it is on, to its files' bytes."""

import contextlib
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.errors import DuetError
from pipeline.prepare.cutting import Part
from pipeline.prepare.encode.segment_encoder import PartEncoder
from pipeline.store.atomic import output_errors
from pipeline.store.chunk_cache import PartInfo, PartStore

_worker: tuple[str, PartEncoder] | None = None
"""The settings' name and their encoder: one a worker process, made by its first task."""


def encode_on_node(
    driver_has: dict[str, str], settings: list[Any], part: Part, key: str
) -> tuple[PartInfo, dict[str, bytes]]:
    """Encode a part: the whole of a task.

    Args:
        driver_has: The driver's ``libraries``.
        settings: A reference to the EncodingSettings in Ray's object store, alone in a list.
        part: The part.
        key: Its key.

    Returns:
        What is known of the part, and the bytes of its shards by split.

    Raises:
        DuetError: This node has other libraries.
        OutputError: This node's temporary folder cannot be written.
    """
    encoder = _encoder(driver_has, settings[0])
    with contextlib.ExitStack() as stack:
        with output_errors(Path(tempfile.gettempdir())):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="duet-")))
        store = PartStore(folder / "parts", folder / "temporary")
        info = encoder.encode(part.conversations, key, store)
        return info, store.contents(info)


def libraries() -> dict[str, str]:
    """Return the versions that decide a part's bytes."""
    return {name: version(name) for name in ("duet-t5", "numpy", "pyarrow", "tokenizers")}


def _encoder(driver_has: dict[str, str], settings: Any) -> PartEncoder:
    global _worker
    if _worker is None or _worker[0] != settings.hex():
        if driver_has != libraries():
            raise DuetError(
                "a node has other libraries than the driver",
                where=platform.node(),
                got=f"{libraries()}, not {driver_has}",
                do="install the same versions on every node",
            )
        import ray

        # A worker a core is enough; threads in each would fight for them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        _worker = settings.hex(), PartEncoder(ray.get(settings))
    return _worker[1]
