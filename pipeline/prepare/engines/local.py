"""Encodes parts in this process, or in several on this machine.

Workers get conversations and write the part's files themselves. This process reads, and encodes
too when they have enough to do: on few cores reading alone would not fill one. Few parts are
under way at a time, so memory stays flat whatever the input's size.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import DuetError
from pipeline.prepare.cutting import Part
from pipeline.prepare.encode.segment_encoder import EncodingSettings, PartEncoder
from pipeline.prepare.engines.base import Result
from pipeline.prepare.gc_tuning import collect_rarely
from pipeline.store.atomic import write_file
from pipeline.store.chunk_cache import PartInfo, PartStore

# Starting workers takes as long as encoding some parts.
_PARTS_FOR_WORKERS = 3
# One that is encoded and two that wait: while this process encodes one itself, nobody reads.
_PARTS_A_WORKER = 3


class LocalEngine:
    """Encodes parts on this machine.

    Args:
        store: Where to.
        num_workers: Processes, this one among them; None: one for each core. A few parts, where
            there are no more, are encoded in this one.
    """

    def __init__(self, store: PartStore, num_workers: int | None) -> None:
        """Start nothing yet."""
        self._store, self._workers = store, num_workers or usable_cores()
        self._settings: EncodingSettings | None = None
        self._encoder: PartEncoder | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: list[_Handed] = []
        self._under_way: list[Future[PartInfo]] = []

    @property
    def slots(self) -> int:
        """How many parts may be under way: all workers busy, and each with two to go on with."""
        return _PARTS_A_WORKER * self._workers

    def start(self) -> None:
        """Start the workers now, where there is surely work for them."""
        if self._workers > 1 and self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._workers - 1,
                multiprocessing.get_context("spawn"),
                _start_worker,
                (self._settings_file, self._store),
            )
            with hidden_main():
                self._pool.submit(_nothing)

    def use(self, settings: EncodingSettings) -> None:
        """Say how parts are encoded; before the first of them is handed over."""
        self._settings = settings
        # What a process is started with goes through a pipe, and this one would wait for each
        # worker to come up and empty it: the tokenizer, which is large, goes through a file.
        write_file(self._settings_file, pickle.dumps(settings), is_durable=False)

    def submit(self, part: Part, key: str) -> Result:
        """Hand over a part; it is encoded at once, here, if the workers have enough to do."""
        handed = _Handed(self, part, key)
        if self._workers > 1:
            self._waiting.append(handed)
            if len(self._waiting) >= _PARTS_FOR_WORKERS:
                self.start()
            if self._pool is not None:
                self._send(self._pool)
        return handed.result

    def encode_here(self, part: Part, key: str) -> PartInfo:
        """Encode a part in this process."""
        if self._encoder is None:
            assert self._settings is not None, "use() comes first"
            self._encoder = PartEncoder(self._settings)
        return self._encoder.encode(part.conversations, key, self._store)

    def close(self) -> None:
        """Let the workers go, without waiting for what they have not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def _settings_file(self) -> Path:
        return self._store.temporary / "settings.pickle"

    def _send(self, pool: ProcessPoolExecutor) -> None:
        """Send what waits to the workers, as long as they have use for it."""
        for handed in self._waiting:
            if handed.info is None and self._workers_are_busy():
                handed.encode_here()
            elif handed.info is None:
                with hidden_main(), _no_dead_worker():
                    handed.future = pool.submit(_encode_in_worker, handed.part, handed.key)
                self._under_way.append(handed.future)
        self._waiting = []

    def _workers_are_busy(self) -> bool:
        """Tell whether each worker has a part, and two to go on with."""
        self._under_way = [future for future in self._under_way if not future.done()]
        return len(self._under_way) >= _PARTS_A_WORKER * (self._workers - 1)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Handed:
    """A part that was handed over: with a worker, or waiting for there to be work for one."""

    def __init__(self, engine: LocalEngine, part: Part, key: str) -> None:
        self.part, self.key = part, key
        self.info: PartInfo | None = None
        self.future: Future[PartInfo] | None = None
        self._engine = engine

    def result(self) -> PartInfo:
        if self.future is not None and not self.future.cancel():  # else it waits for a worker
            with _no_dead_worker():
                return self.future.result()
        return self.info or self.encode_here()

    def encode_here(self) -> PartInfo:
        self.info = self._engine.encode_here(self.part, self.key)
        return self.info


@contextlib.contextmanager
def _no_dead_worker() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise DuetError(
            "a tokenizing process died",
            where="prepare",
            got=error,
            do="free some memory, or give --num-workers 1; finished parts are kept",
        ) from error


# One a worker process: where its settings will be, its store, and its encoder, made when the
# first part comes.
_settings_file: Path
_store: PartStore
_encoder: PartEncoder | None = None


def _start_worker(settings_file: Path, store: PartStore) -> None:
    global _settings_file, _store
    _settings_file, _store = settings_file, store
    # A worker a core is enough; threads in each would fight for them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    collect_rarely()
    # What a worker holds needs no taking apart: a tenth of a second in which the run would wait.
    atexit.register(os._exit, 0)


def _nothing() -> None:
    """Make a pool start its processes."""


def _end_with_parent() -> None:
    """End this process with its parent: one that was killed cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(part: Part, key: str) -> PartInfo:
    global _encoder
    if _encoder is None:
        _encoder = PartEncoder(pickle.loads(_settings_file.read_bytes()))
    return _encoder.encode(part.conversations, key, _store)


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep starting workers from importing the caller's main script, which they do not need.

    Without this, ``prepare`` called from a script without an ``if __name__`` guard would run that
    script again in each worker.
    """
    main: Any = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
