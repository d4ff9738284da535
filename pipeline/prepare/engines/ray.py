"""Runs tasks on a Ray cluster: plain tasks, each reading its own stretch of a file.

A node that sees the chunk cache's folder writes its chunks there; another one sends them, as bytes.
A file that a node cannot see is sent to it, piece by piece.

Ray ends this process, without a word of ours, when its cluster's head has been gone for a minute:
so while a result is waited for, the head is looked after, and its end is said in one line.
"""

import contextlib
import importlib.util
import io
import logging
import os
import platform
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DuetError
from pipeline.logs import note
from pipeline.prepare.encode.segment_encoder import EncodingSettings, SegmentEncoder
from pipeline.prepare.engines.base import Task
from pipeline.prepare.engines.local import usable_cores
from pipeline.prepare.files.segments import Segment
from pipeline.store.atomic import output_errors, write_file
from pipeline.store.chunk_cache import Chunk, ChunkCache

_RETRIES = 3
_SECONDS_TO_CONNECT = 10.0
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_WITHOUT_HEAD = 30.0


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
        """Start nothing yet.

        Raises:
            ConfigError: Ray is not installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "Ray is not installed",
                where="--engine ray",
                got="no package ray",
                do="pip install 'duet-t5[ray]'",
            )
        if address is not None and num_workers is not None:
            note("--num-workers means nothing on a cluster that runs already; ignored")
        self._cache, self._address, self._num_workers = cache, address, num_workers
        self._cluster: _Cluster | None = None
        self._silence = contextlib.ExitStack()

    @property
    def slots(self) -> int:
        """How many tasks may be under way: all CPUs busy, and each with one to go on with."""
        return 2 * max(self._cluster.num_cpus if self._cluster else 1, 1)

    def expect(self, num_bytes: int) -> None:
        """Do nothing: a cluster that runs has its workers."""

    def use(self, settings: EncodingSettings) -> None:
        """Join the cluster, or start one, and hand it the settings."""
        # Ray prints on stdout what becomes of its workers; stdout is for the result.
        nowhere = self._silence.enter_context(io.StringIO())
        self._silence.enter_context(contextlib.redirect_stdout(nowhere))
        self._cluster = _Cluster(self._address or os.environ.get("RAY_ADDRESS"), self._num_workers)
        ray = self._cluster.ray
        token = os.urandom(8).hex()
        marker = self._cache.temporary / "marker"
        write_file(marker, token, is_durable=False)
        self._context = ray.put((settings, self._cache, str(marker), token))
        options = {"max_retries": _RETRIES, "num_cpus": 1}
        self._remote = ray.remote(**options)(run_on_node)

    def submit(self, task: Task, *args: Any) -> Callable[[], Any]:
        """Hand over a task."""
        assert self._cluster is not None, "use() comes first"
        with _clear_errors(self._cluster.ray.exceptions):
            ref = self._remote.remote(libraries(), [self._context], task, args)
        return lambda: self._receive(ref, task, args)

    def close(self) -> None:
        """Leave the cluster, without waiting for what is under way."""
        if self._cluster is not None:
            self._cluster.close()
        self._silence.close()

    def _receive(self, ref: Any, task: Task, args: tuple[Any, ...]) -> Any:
        assert self._cluster is not None, "use() comes first"
        ray = self._cluster.ray
        with _clear_errors(ray.exceptions):
            while not ray.wait([ref], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
                self._cluster.check()
            result, contents = ray.get(ref)
        self._cluster.check()
        if result == _UNSEEN:
            with _clear_errors(ray.exceptions):
                sent = tuple(a.with_content() if isinstance(a, Segment) else a for a in args)
                again = self._remote.remote(libraries(), [self._context], task, sent)
            return self._receive(again, task, sent)
        if contents is not None:
            self._cache.receive(result, contents)
        return result


_UNSEEN = "a file is not seen from here"
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
        task: What to run.
        args: With what.

    Returns:
        What the task gives and, of a chunk that was written elsewhere, its files' bytes.

    Raises:
        DuetError: This node has other libraries, or the task cannot be done.
    """
    encoder, shares_cache = _encoder(driver_has, context[0])
    for segment in args:
        if isinstance(segment, Segment) and not segment.is_visible():
            return _UNSEEN, None
    result = task(encoder, *args)
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
        settings, cache, marker, token = ray.get(context)
        shares_cache, folder = _has(Path(marker), token), None
        if not shares_cache:
            with output_errors(Path(tempfile.gettempdir())):
                folder = tempfile.TemporaryDirectory(prefix="duet-")
            cache = ChunkCache(Path(folder.name) / "chunks", Path(folder.name) / "temporary")
        _worker = context.hex(), SegmentEncoder(settings, cache), shares_cache, folder
    return _worker[1], _worker[2]


def _has(marker: Path, token: str) -> bool:
    """Return whether this node sees the folder that the driver works in."""
    try:
        return marker.read_text(encoding="utf-8") == token
    except OSError:
        return False


class _Cluster:
    """A connection to Ray: joined or started, watched, and let go again."""

    def __init__(self, address: str | None, num_cpus: int | None) -> None:
        warnings.simplefilter("ignore")  # Ray's own, about itself
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray: Any = ray
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            if address and ":" in address:
                _knock(_split(address))  # Ray itself would wait for minutes
            with _quiet():
                self._connect(address, num_cpus)
        # Where no head answers, Ray sends this process a SIGTERM, which it makes an exit.
        except (Exception, SystemExit) as error:
            raise _no_cluster(address, error) from error
        finally:
            for number, handler in handlers.items():
                with contextlib.suppress(ValueError, TypeError):  # only the main thread may
                    signal.signal(number, handler)
        context = ray.get_runtime_context()
        self._head, self._node = _split(context.gcs_address), context.get_node_id()
        self._looked = self._seen = time.monotonic()
        self.num_cpus = self._count_cpus()
        if not self.num_cpus:
            note("the Ray cluster has no CPU yet; waiting for a node that has")

    def check(self) -> None:
        """Look, now and then, whether the cluster is there; count its CPUs anew."""
        now = time.monotonic()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        try:
            _knock(self._head)
        except OSError as error:
            if now - self._seen > _SECONDS_WITHOUT_HEAD:
                raise _died(f"its head does not answer: {error}") from error
        else:
            self._seen = now
            self.num_cpus = self._count_cpus()
        self._looked = time.monotonic()

    def close(self) -> None:
        """Leave the cluster; end a Ray of its own."""
        self.ray.shutdown()

    def _connect(self, address: str | None, num_cpus: int | None) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        if address is not None:
            self.ray.init(address, **quiet)
            return
        try:
            self.ray.init(num_cpus=num_cpus or usable_cores(), **quiet)
        except ValueError:  # a cluster runs on this machine, and it has the CPUs that it has
            self.ray.init(**quiet)

    def _count_cpus(self) -> int:
        nodes = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}
        if self._node not in nodes:  # Ray itself may go on waiting for good
            raise _died("this machine is no node of it any more")
        return int(sum(node["Resources"].get("CPU", 0) for node in nodes.values()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray prints while it starts from stdout, which is for the result."""
    before = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


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
            f"a tokenizing process died, {_RETRIES + 1} times with the same segment",
            where="--engine ray",
            got=_first_line(error),
            do="give the nodes more memory; finished chunks are kept",
        ) from error
    except errors.RayError as error:
        raise _died(f"{type(error).__name__}: {_first_line(error)}") from error


def _died(got: object) -> DuetError:
    return DuetError(
        "the Ray cluster died",
        where="--engine ray",
        got=got,
        do="start it again, then the same command: finished chunks are kept",
    )


def _no_cluster(address: str | None, error: BaseException) -> ConfigError:
    said = "no answer" if isinstance(error, SystemExit) else _first_line(error)
    return ConfigError(
        "no Ray cluster can be joined or started",
        where="--ray-address",
        got=f"{address or 'none given'}: {said}",
        do="start it (ray start --head, and on the other nodes ray start --address HOST:PORT), "
        "with the same Ray and Python everywhere, and give HOST:PORT of its head",
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _knock(address: tuple[str, int]) -> None:
    socket.create_connection(address, _SECONDS_TO_CONNECT).close()
