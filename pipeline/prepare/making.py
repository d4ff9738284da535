"""Parts to a prepared folder's shards, in order: found if they were made before, else made now."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Self

from pipeline.config import PrepareConfig
from pipeline.logs import note
from pipeline.prepare.cutting import MEAN_SIZE, Part
from pipeline.prepare.encode.segment_encoder import EncodingSettings
from pipeline.prepare.engines.base import make_engine
from pipeline.prepare.found import Known, RereadError
from pipeline.prepare.options import part_options
from pipeline.store.chunk_cache import PART_SCHEMA, PartInfo, PartStore
from pipeline.store.fingerprint import key_of
from pipeline.store.prepared import PreparedWriter
from pipeline.tokenizer import TextTokenizer

_MOST_PENDING = 256
# In characters: what is read and not yet written, however many workers there are.
_MAX_UNDER_WAY = 128 * MEAN_SIZE


def _present(part: Part | None) -> Part:
    if part is None:
        raise RereadError("some parts are gone or damaged")
    return part


@dataclass(slots=True)
class _Pending:
    """A part under way, and how to wait for it."""

    part: Part | None
    """None once the part is sure to be there, as what is under way is what takes memory; and of
    a part that is known by its passage."""
    key: str
    result: Callable[[], PartInfo | None] = lambda: None
    """Returns None where the part that was found turned out to be gone or damaged."""


class PartMaker:
    """Finds or makes parts.

    Args:
        config: The settings.
        store: Where parts are kept.
    """

    def __init__(self, config: PrepareConfig, store: PartStore) -> None:
        """Start nothing yet."""
        self._config, self._store = config, store
        self._engine = make_engine(config, store)
        self._checkers = ThreadPoolExecutor(2)
        self._settings_key = ""

    def __enter__(self) -> Self:
        """Return the maker; leaving the block ends its workers."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        self._checkers.shutdown(wait=True, cancel_futures=True)
        self._engine.close()

    def start(self) -> None:
        """Start the workers now: they come up while the tokenizer is loaded."""
        self._engine.start()

    def use(self, tokenizer: TextTokenizer) -> None:
        """Say which tokenizer parts are made with; before ``make``."""
        config = self._config
        self._engine.use(
            EncodingSettings(
                tokenizer,
                config.model_max_length,
                config.target_length,
                config.eval_fraction,
                last_turn_only=config.train_turns == "last",
            )
        )
        # The libraries that write the bytes belong to the key: a part is what would be made now.
        libraries = [version(name) for name in ("pyarrow", "tokenizers")]
        self._settings_key = key_of(
            part_options(config), tokenizer.fingerprint, PART_SCHEMA, libraries
        )

    def key_of(self, part: Part) -> str:
        """Return the key under which a part is kept."""
        return part.key(self._settings_key)

    def has(self, key: str) -> bool:
        """Tell whether a part is there already."""
        return self._store.find(key) is not None

    @property
    def settings_key(self) -> str:
        """All that decides a part's rows, beside its conversations."""
        return self._settings_key

    def make(self, parts: Iterable[Part | Known], prepared: PreparedWriter) -> Iterator[PartInfo]:
        """Add the rows of parts to a prepared folder, in order; yield each part's counts.

        Parts are read on while others are under way, but only so many: memory stays flat.

        Raises:
            RereadError: A passage is known, but its part is not there any more.
        """
        pending: deque[_Pending] = deque()
        for part in parts:
            key = part.passage.part if isinstance(part, Known) else self.key_of(part)
            while any(p.key == key for p in pending):  # the same part twice is made once
                yield self._finish(pending.popleft(), prepared)
            pending.append(self._start(None if isinstance(part, Known) else part, key))
            while self._is_full(pending):
                yield self._finish(pending.popleft(), prepared)
        while pending:
            yield self._finish(pending.popleft(), prepared)

    def _is_full(self, pending: deque[_Pending]) -> bool:
        if len(pending) > _MOST_PENDING:
            return True
        held = [p.part.size for p in pending if p.part is not None]
        return len(held) > self._engine.slots or (len(held) > 1 and sum(held) > _MAX_UNDER_WAY)

    def _start(self, part: Part | None, key: str) -> _Pending:
        pending = _Pending(part, key)
        found = self._store.find(key)
        if found is None:
            pending.result = self._engine.submit(_present(part), key)
        else:
            pending.result = self._checkers.submit(self._check, pending, found).result
        return pending

    def _check(self, pending: _Pending, found: PartInfo) -> PartInfo | None:
        """Hold on to a part that was found, if it is whole: it may be pruned at any time."""
        try:
            self._store.pin(found)
        except FileNotFoundError:
            return None
        if self._store.is_whole(found):
            pending.part = None
            return found
        self._store.unpin(found)
        if pending.part is not None:
            note(f"a part was damaged and is made again: {self._store.path(found.key)}")
        return None

    def _finish(self, pending: _Pending, prepared: PreparedWriter) -> PartInfo:
        info = pending.result()
        if info is None:
            info = self._engine.encode_here(_present(pending.part), pending.key)
        prepared.add(self._store, info)
        return info
