"""Runs tasks on a Ray cluster: plain tasks, each reading its own stretch of a file.

A node that sees the chunk cache's folder writes its chunks there; another one sends them, as bytes.
JSON that a node cannot see is sent to it, piece by piece; Parquet and Arrow are then encoded here,
and here repeats are taken out of a chunk.

Ray ends a process that uses it, without a word, when that process loses its node, or its cluster's
head. So a run with Ray is a process of its own, which ``in_own_process`` starts and waits for.
"""

import contextlib
import logging
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import PrepareConfig
from pipeline.console.logs import note
from pipeline.errors import ConfigError, DuetError, require_package
from pipeline.prepare.encode.segment_encoder import SegmentEncoder
from pipeline.prepare.encode.settings import load_settings
from pipeline.prepare.engines.base import Task
from pipeline.prepare.engines.local import end_with_parent, hidden_main, usable_cores
from pipeline.prepare.files.segments import Piece, Segment
from pipeline.prepare.options import EncodingInfo
from pipeline.store.atomic import hold_folder, output_errors, write_file
from pipeline.store.chunk_cache import Chunk, ChunkCache

T = TypeVar("T")

_RETRIES = 3
_SECONDS_TO_CONNECT = _SECONDS_TO_END = 10.0
_SECONDS_BETWEEN_LOOKS = 5.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # How long Ray's processes wait for a head that is gone, in seconds; else 60, also those that
    # a killed run leaves.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a new process, which may use Ray; return its result.

    Raises:
        DuetError: What the function raises, the process was ended, or Ray is not installed.
    """
    require_package("ray", where="--engine ray", install="'duet-t5[ray]'")
    context = multiprocessing.get_context("spawn")
    outcomes, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, function, args))
    with hidden_main():
        process.start()
    theirs.close()
    try:
        outcome = outcomes.recv()
    except EOFError:
        process.join()
        outcome = _died(f"it ended the process that used it (exit code {process.exitcode})")
    finally:
        process.join(_SECONDS_TO_END)
        process.kill()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome  # type: ignore[no-any-return]


def _call(outcomes: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    # What Ray itself says of its workers and its connections goes nowhere; what Python says, on.
    sys.stderr = os.fdopen(os.dup(2), "w", 1, encoding="utf-8", errors="backslashreplace")
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    warnings.simplefilter("ignore")  # Ray's own, about itself
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        outcomes.send(function(*args))
    except Exception as error:
        outcomes.send(error)
    except KeyboardInterrupt:
        pass  # the parent has it, too


class RayEngine:
    """Runs tasks on a Ray cluster.

    Args:
        cache: Where chunks are kept, on this machine.
        address: HOST:PORT of the cluster's head, or ``auto`` for the cluster that this machine is
            a node of. None: the latter if there is one, else a Ray of this run's own, on this
            machine, which ends with it.
        num_workers: CPUs of a Ray of this run's own; None: all cores.
    """

    def __init__(self, cache: ChunkCache, address: str | None, num_workers: int | None) -> None:
        if address is not None and num_workers is not None:
            note("--num-workers is ignored: the Ray cluster already runs")
        self._cache, self._num_workers = cache, num_workers
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._ray: Any = None
        self._num_cpus, self._looked = 0, 0.0

    @property
    def slots(self) -> int:
        """How many tasks may be under way: all CPUs busy, and each with one waiting."""
        return 2 * max(self._num_cpus, 1)

    def start(self, config: PrepareConfig, num_bytes: int) -> None:
        """Load the tokenizer, join the cluster, or start one, and hand it the settings."""
        import ray

        settings = load_settings(config)
        self._ray = ray
        self._encoder = SegmentEncoder(lambda: settings, self._cache)
        token, marker = os.urandom(8).hex(), self._cache.temporary / "marker"
        write_file(marker, token, is_durable=False)
        with _clear_errors(ray.exceptions):
            self._join()
            self._node = ray.get_runtime_context().get_node_id()
            self._look()
            context = ray.put((settings, self._cache, marker, token, Path.cwd()))
        self._context = libraries(), [context]
        # Else Ray fills this node first.
        options = {"max_retries": _RETRIES, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(**options)(run_on_node)
        if not self._num_cpus:
            note("the Ray cluster has no CPUs yet; waiting for a node")

    def info(self) -> EncodingInfo:
        """Return how segments are encoded."""
        return self._encoder.settings.info

    def submit(self, task: Task, *args: Any) -> Callable[[], Any]:
        """Hand over a task."""
        with _clear_errors(self._ray.exceptions):
            ref = self._remote.remote(*self._context, task, args)
        return lambda: self._receive(ref, task, args)

    def close(self) -> None:
        """Leave the cluster, without waiting for what is under way; end a Ray of its own."""
        if self._ray is not None:
            self._ray.shutdown()

    def _receive(self, ref: Any, task: Task, args: tuple[Any, ...]) -> Any:
        with _clear_errors(self._ray.exceptions):
            while not self._ray.wait([ref], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
                self._look()
            result, contents = self._ray.get(ref)
            self._look()
        if result == UNSEEN:
            sent = tuple(a.with_content() if isinstance(a, Segment) else a for a in args)
            if all(isinstance(a, Segment) and a.has_content() for a in sent):
                return self.submit(task, *sent)()
            return getattr(self._encoder, task)(*args)
        if contents is not None:
            self._cache.receive(result, contents)
        return result

    def _join(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        address = self._address
        try:
            if address is not None and ":" in address:  # Ray itself would wait for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
            own = {} if address else {"num_cpus": self._num_workers or usable_cores()}
            try:
                self._ray.init(address, **own, **quiet)
            except ValueError:  # a cluster runs on this machine, and has the CPUs that it has
                self._ray.init(address, **quiet)
        # Where no head answers, Ray sends this process a SIGTERM, which it makes an exit.
        except (Exception, SystemExit) as error:
            said = "no answer" if isinstance(error, SystemExit) else _first_line(error)
            raise ConfigError(
                "no Ray cluster can be joined or started",
                where="--ray-address",
                got=f"{address or 'none given'}: {said}",
                do="start it (ray start --head, and on the other nodes ray start --address "
                "HOST:PORT), with the same Ray and Python everywhere, and give HOST:PORT",
            ) from error

    def _look(self) -> None:
        """See, now and then, whether this machine is in the cluster; count its CPUs anew."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        nodes = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        if self._node not in nodes:  # Ray itself may go on waiting for good
            raise _died("this machine is no longer a node of it")
        self._num_cpus = int(sum(node["Resources"].get("CPU", 0) for node in nodes.values()))
        self._looked = time.monotonic()


UNSEEN = "a file is not seen from here"
_worker: tuple[str, SegmentEncoder, bool, Any] | None = None
"""The context's name, its encoder, whether it writes into the driver's cache, and its folder: one a
worker process, made by its first task."""


def run_on_node(
    driver_has: dict[str, str], context: list[Any], task: Task, args: tuple[Any, ...]
) -> tuple[Any, dict[str, bytes] | None]:
    """Run a task: all that a Ray worker does.

    Args:
        driver_has: The driver's ``libraries``.
        context: A reference to the settings and the cache in Ray's object store, alone in a list.
        task: What to run, with ``args``.

    Returns:
        What the task gives and, of a chunk that was written elsewhere, its files' bytes.
    """
    encoder, shares_cache = _encoder(driver_has, context[0])
    for arg in args:
        is_file = isinstance(arg, Piece | Segment)
        if (is_file and not arg.is_visible()) or (isinstance(arg, Chunk) and not shares_cache):
            return UNSEEN, None
    result = getattr(encoder, task)(*args)
    if isinstance(result, Chunk) and not shares_cache:
        return result, encoder.cache.contents(result)
    return result, None


def libraries() -> dict[str, str]:
    """Return the versions that decide a chunk's bytes."""
    return {name: version(name) for name in ("duet-t5", "numpy", "pyarrow", "tokenizers")}


def _encoder(driver_has: dict[str, str], context: Any) -> tuple[SegmentEncoder, bool]:
    global _worker
    if _worker is None or _worker[0] != context.hex():
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
        shares_cache, temporary = False, None
        settings, cache, marker, token, folder = ray.get(context)
        with contextlib.suppress(OSError):  # where it is, paths mean what they mean to the driver
            os.chdir(folder)
        with contextlib.suppress(OSError):
            seen = marker.read_text(encoding="utf-8") == token
            shares_cache = seen and hold_folder(cache.temporary)
        if not shares_cache:
            with output_errors(Path(tempfile.gettempdir())):
                temporary = tempfile.TemporaryDirectory(prefix="duet-")
            own = Path(temporary.name)
            cache = ChunkCache(own / "chunks", own / "temporary")
        _worker = context.hex(), SegmentEncoder(lambda: settings, cache), shares_cache, temporary
    return _worker[1], _worker[2]


@contextlib.contextmanager
def _clear_errors(errors: Any) -> Iterator[None]:
    """Make one line of what Ray raises; ``errors`` is ``ray.exceptions``."""
    try:
        yield
    except errors.RayTaskError as error:
        if isinstance(error.cause, DuetError):
            raise error.cause from None
        raise DuetError(
            "a segment could not be encoded on a node",
            where="--engine ray",
            got=str(error).strip().splitlines()[-1],
            do="see that each node has this package and its libraries, in the same versions",
        ) from error
    except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
        raise DuetError(
            f"a worker process died, {_RETRIES + 1} times with the same segment",
            where="--engine ray",
            got=_first_line(error),
            do="give the nodes more memory; finished chunks are kept",
        ) from error
    except (errors.RayError, OSError) as error:  # the latter of a socket to Ray's own processes
        raise _died(f"{type(error).__name__}: {_first_line(error)}") from error


def _died(got: object) -> DuetError:
    return DuetError(
        "the Ray cluster died",
        where="--engine ray",
        got=got,
        do="start it again, then the same command: finished chunks are kept",
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
