"""Encodes parts on Ray: this process reads and cuts, one more process speaks with the cluster.

Ray ends a process without a word when its cluster dies, prints on stdout, and changes how signals
are taken. So it lives in a process of its own, and this one says what became of it.
"""

import contextlib
import importlib.util
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pipeline.errors import ConfigError, DuetError
from pipeline.logs import note
from pipeline.prepare.cutting import Part
from pipeline.prepare.encode.segment_encoder import EncodingSettings
from pipeline.prepare.engines.base import Result
from pipeline.prepare.engines.local import LocalEngine, hidden_main
from pipeline.prepare.engines.ray_driver import Answer, run_driver
from pipeline.prepare.engines.ray_session import cluster_died
from pipeline.store.chunk_cache import PartInfo, PartStore

_SECONDS_TO_END = 30.0


class RayEngine:
    """Encodes parts on a Ray cluster.

    Args:
        store: Where they are put, on this machine.
        address: HOST:PORT of the cluster's head, or ``auto`` for the cluster that this machine is
            a node of. None: the latter if there is one, else a Ray of this run's own, on this
            machine, which ends with it.
        num_workers: CPUs of a Ray of this run's own; None: all cores.
    """

    def __init__(self, store: PartStore, address: str | None, num_workers: int | None) -> None:
        """Start nothing yet: all parts may be there already.

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
        self._address, self._num_workers, self._store = address, num_workers, store
        self._here = LocalEngine(store, 1)
        self._settings: EncodingSettings | None = None
        self._driver: _Driver | None = None

    @property
    def slots(self) -> int:
        """How many parts may be under way: all CPUs busy, and each with one to go on with."""
        return 2 * max(self._driver.num_cpus if self._driver else 1, 1)

    def start(self) -> None:
        """Do nothing: Ray is joined with the first part, since all of them may be there."""

    def use(self, settings: EncodingSettings) -> None:
        """Say how parts are encoded; before the first of them is handed over."""
        self._settings = settings
        self._here.use(settings)

    def submit(self, part: Part, key: str) -> Result:
        """Hand over a part."""
        if self._driver is None:
            assert self._settings is not None, "use() comes first"
            self._driver = _Driver(self._address, self._num_workers, self._settings, self._store)
        return self._driver.submit(part, key)

    def encode_here(self, part: Part, key: str) -> PartInfo:
        """Encode a part in this process."""
        return self._here.encode_here(part, key)

    def close(self) -> None:
        """Leave the cluster, without waiting for what is under way."""
        if self._driver is not None:
            self._driver.close()


class _Driver:
    """The process that speaks with Ray, seen from this one."""

    def __init__(
        self,
        address: str | None,
        num_workers: int | None,
        settings: EncodingSettings,
        store: PartStore,
    ) -> None:
        self.num_cpus = 1  # until it has said how many the cluster has
        self._sent = self._done = 0
        self._infos: dict[int, PartInfo] = {}
        context = multiprocessing.get_context("spawn")
        parts, self._parts = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        ends: tuple[Connection, Connection] = (parts, answers)
        self._process: BaseProcess = context.Process(
            target=run_driver, args=(*ends, address, num_workers, settings, store), daemon=True
        )
        with hidden_main():
            self._process.start()
        for end in ends:
            end.close()

    def submit(self, part: Part, key: str) -> Result:
        number, self._sent = self._sent, self._sent + 1
        with contextlib.suppress(BrokenPipeError):  # its last word is among the answers
            self._parts.send((part, key))
        while self._answers.poll():
            self._take_in(self._next_answer())
        return lambda: self._wait(number)

    def close(self) -> None:
        """Let the process end, and Ray with it if it was started for this run."""
        self._parts.close()
        self._answers.close()
        self._process.join(_SECONDS_TO_END)
        self._process.kill()

    def _wait(self, number: int) -> PartInfo:
        while number not in self._infos:
            self._take_in(self._next_answer())
        return self._infos.pop(number)

    def _next_answer(self) -> Answer:
        try:
            answer: Answer = self._answers.recv()
        except (EOFError, OSError) as error:
            self._process.join(_SECONDS_TO_END)
            got = f"Ray ended its driver, exit code {self._process.exitcode}"
            raise cluster_died(got) from error
        return answer

    def _take_in(self, answer: Answer) -> None:
        match answer:
            case DuetError():
                raise answer
            case int():
                if not answer:
                    note("the Ray cluster has no CPU yet; waiting for a node that has")
                self.num_cpus = answer
            case _:
                self._infos[self._done] = answer  # parts come back in the order they went
                self._done += 1
