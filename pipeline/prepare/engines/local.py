"""Runs tasks in this process, or in several on this machine.

Few tasks are under way at a time, so memory stays flat whatever the input's size.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.config import PrepareConfig
from pipeline.errors import DuetError
from pipeline.prepare.engines.base import Task
from pipeline.prepare.engines.gc_tuning import collect_rarely
from pipeline.prepare.options import EncodingInfo
from pipeline.store.atomic import hold_folder, write_file
from pipeline.store.chunk_cache import ChunkCache

if TYPE_CHECKING:
    from pipeline.prepare.encode.segment_encoder import SegmentEncoder
    from pipeline.prepare.encode.settings import EncodingSettings

# Below this, starting workers takes as long as the work.
_BYTES_FOR_WORKERS = 1 << 22
_TASKS_A_WORKER = 3  # one that runs and two that wait


class LocalEngine:
    """Runs tasks on this machine.

    Args:
        cache: Where chunks are kept.
        num_workers: Processes beside this one, which only puts together what they make; 1: all is
            done in this one.
    """

    def __init__(self, cache: ChunkCache, num_workers: int) -> None:
        self._cache, self._workers = cache, num_workers
        self._encoder: SegmentEncoder | None = None
        self._loaded: Callable[[], EncodingInfo] | None = None
        self._pool: ProcessPoolExecutor | None = None

    @property
    def slots(self) -> int:
        """How many tasks may be under way: all workers busy, and each with two waiting."""
        return _TASKS_A_WORKER * self._workers if self._workers > 1 else 1

    def start(self, config: PrepareConfig, num_bytes: int) -> None:
        """Start workers, if there is work for them; one of them loads the tokenizer."""
        if num_bytes < _BYTES_FOR_WORKERS:
            self._workers = 1
        if self._workers == 1:
            self._encoder = _new_encoder(lambda: _load_settings(config), self._cache)
            return
        # What a process is started with goes through a pipe, and this one would wait for each
        # worker to come up and empty it: the tokenizer, which is large, goes through a file.
        settings_file = self._cache.temporary / "settings.pickle"
        self._pool = ProcessPoolExecutor(
            self._workers,
            multiprocessing.get_context(_start_method()),
            _start_worker,
            (settings_file, self._cache),
        )
        self._loaded = self._submit(_load, config)
        for _ in range(1, self._workers):
            self._submit(_import)

    def info(self) -> EncodingInfo:
        """Return how segments are encoded; without workers, the tokenizer is loaded here."""
        if self._loaded is not None:
            return self._loaded()
        assert self._encoder is not None, "start() comes first"
        return self._encoder.settings.info

    def submit(self, task: Task, *args: Any) -> Callable[[], Any]:
        """Hand over a task; without workers it is run when its result is asked for."""
        if self._pool is None:
            return lambda: getattr(self._encoder, task)(*args)
        return self._submit(_run, task, args)

    def close(self) -> None:
        """Let the workers go, without waiting for what they have not started."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        assert self._pool is not None, "start() comes first"
        with hidden_main(), _no_interrupts(), _no_dead_worker():
            future = self._pool.submit(function, *args)

        def result() -> Any:
            with _no_dead_worker():
                return future.result()

        return result


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_method() -> str:
    """Return how workers start: forked, they need not import again what this process has.

    That is safe where it has one thread, those of libraries counted.
    """
    with contextlib.suppress(OSError):  # elsewhere than on Linux
        if len(list(Path("/proc/self/task").iterdir())) == 1:
            return "fork"
    return "spawn"


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Keep ctrl-c waiting, here and in workers that are started, which are not ready for it yet."""
    if not hasattr(signal, "pthread_sigmask"):  # not on every system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _no_dead_worker() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise DuetError(
            "a worker process died",
            where="prepare",
            got=error,
            do="free some memory, or give --num-workers 1; finished chunks are kept",
        ) from error


# One a worker process: where the settings will be, and they themselves in the one that loaded them;
# its cache; and its encoder, made for the first task.
_settings_file: Path
_settings: "EncodingSettings | None" = None
_cache: ChunkCache
_encoder: "SegmentEncoder | None" = None


# Imported late: a process that only puts together does without the tokenizer, NumPy and Arrow.
def _new_encoder(load: "Callable[[], EncodingSettings]", cache: ChunkCache) -> "SegmentEncoder":
    from pipeline.prepare.encode.segment_encoder import SegmentEncoder

    return SegmentEncoder(load, cache)


def _load_settings(config: PrepareConfig) -> "EncodingSettings":
    from pipeline.prepare.encode.settings import load_settings

    return load_settings(config)


def _start_worker(settings_file: Path, cache: ChunkCache) -> None:
    global _settings_file, _cache
    _settings_file, _cache = settings_file, cache
    if not hold_folder(cache.temporary):
        os._exit(1)  # the run was killed, and the next one took it away
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ctrl-c ends a worker without a word
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # A worker a core is enough; threads in each would fight for them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=end_with_parent, daemon=True).start()
    collect_rarely()
    # What a worker holds needs no taking apart: a tenth of a second in which the run would wait.
    atexit.register(os._exit, 0)


def _import() -> None:
    """Start a process of a pool, and import meanwhile what it will need."""
    import pipeline.prepare.encode.segment_encoder  # noqa: F401


def _load(config: PrepareConfig) -> EncodingInfo:
    """Load the tokenizer, for all workers."""
    global _settings
    _settings = _load_settings(config)
    write_file(_settings_file, pickle.dumps(_settings), is_durable=False)
    return _settings.info


def end_with_parent() -> None:
    """End this process with its parent: one that was killed cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Task, args: tuple[Any, ...]) -> Any:
    global _encoder
    if _encoder is None:
        _encoder = _new_encoder(_settings_of_all, _cache)
    return getattr(_encoder, task)(*args)


def _settings_of_all() -> "EncodingSettings":
    """Return the settings: they are there when a segment comes, as the parent waits for them."""
    if _settings is not None:
        return _settings
    found: EncodingSettings = pickle.loads(_settings_file.read_bytes())
    return found


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
