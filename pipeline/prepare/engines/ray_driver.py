"""The process that speaks with Ray: takes in parts, maps them over the cluster, keeps the results.

No disk is shared: a task makes its part in a folder of its node and returns the files' bytes, which
this process writes into the driver's store. Ray runs a task again whose worker or node died.
"""

import contextlib
import os
import queue
import signal
import threading
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from pipeline.errors import DuetError
from pipeline.prepare.encode.segment_encoder import EncodingSettings
from pipeline.prepare.engines.ray_session import RaySession, cluster_died, first_line
from pipeline.prepare.engines.ray_task import encode_on_node, libraries
from pipeline.store.chunk_cache import PartInfo, PartStore

Answer = int | PartInfo | DuetError
"""How many CPUs the cluster has; a part that is in the store, in the order they came; a fault."""

_RETRIES = 3
_SECONDS_BETWEEN_LOOKS = 1.0


def run_driver(
    parts: Connection,
    answers: Connection,
    address: str | None,
    num_workers: int | None,
    settings: EncodingSettings,
    store: PartStore,
) -> None:
    """Encode what comes through ``parts`` until it is closed; the whole of the process."""
    _be_quiet()
    try:
        session = RaySession(address, num_workers)
    except DuetError as error:
        answers.send(error)
        return
    try:
        answers.send(session.num_cpus)
        with _Receiver(session, store, answers) as receiver:
            ray = session.ray
            encode = ray.remote(num_cpus=1, max_retries=_RETRIES)(encode_on_node)
            # In a list, Ray hands the reference over as it is: a worker gets the settings once.
            common = (libraries(), [ray.put(settings)])
            with contextlib.suppress(EOFError):
                while True:
                    receiver.refs.put(encode.remote(*common, *parts.recv()))
    finally:
        session.close()


class _Receiver:
    """A thread that waits for tasks in their order and writes what they return."""

    def __init__(self, session: RaySession, store: PartStore, answers: Connection) -> None:
        self.refs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._session, self._store, self._answers = session, store, answers
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.refs.put(None)
        self._thread.join()

    def _run(self) -> None:
        num_cpus = self._session.num_cpus
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
            try:
                while not self._closing.is_set() and (ref := self.refs.get()) is not None:
                    info = self._receive(ref)
                    if info is not None:
                        self._answers.send(info)
                    if num_cpus != self._session.num_cpus:
                        num_cpus = self._session.num_cpus
                        self._answers.send(num_cpus)
            except DuetError as error:
                self._answers.send(error)

    def _receive(self, ref: Any) -> PartInfo | None:
        ray = self._session.ray
        with _clear_errors(ray.exceptions):
            while not ray.wait([ref], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
                if self._closing.is_set():
                    return None
                self._session.check()
            returned: tuple[PartInfo, dict[str, bytes]] = ray.get(ref)
        self._session.check()
        info, contents = returned
        self._store.receive(info, contents)
        return info


@contextlib.contextmanager
def _clear_errors(errors: Any) -> Iterator[None]:
    """Make one line of what Ray raises; ``errors`` is ``ray.exceptions``."""
    try:
        yield
    except errors.RayTaskError as error:
        if isinstance(error.cause, DuetError):
            raise error.cause from None
        raise DuetError(
            "a part could not be encoded on a node",
            where="--engine ray",
            got=str(error).strip().splitlines()[-1],
            do="see that each node has this package and its libraries, in the same versions",
        ) from error
    except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
        raise DuetError(
            f"a tokenizing process died, {_RETRIES + 1} times with the same part",
            where="--engine ray",
            got=first_line(error),
            do="give the nodes more memory; finished parts are kept",
        ) from error
    except errors.RayError as error:
        raise cluster_died(f"{type(error).__name__}: {first_line(error)}") from error


def _be_quiet() -> None:
    """Say nothing: what Ray prints and warns of is for its logs, what matters is an answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c ends the process that started this one
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    # No usage report.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
