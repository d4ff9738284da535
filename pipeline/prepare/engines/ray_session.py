"""A connection to Ray: joined or started, watched, and let go again."""

import logging
import os
import socket
import time
from typing import Any

from pipeline.errors import ConfigError, DuetError
from pipeline.prepare.engines.local import usable_cores

_SECONDS_TO_CONNECT = 10.0
_SECONDS_BETWEEN_LOOKS = 5.0
# Ray ends this process, without a word of ours, when the head has been gone for 60 seconds.
_SECONDS_WITHOUT_HEAD = 30.0


class RaySession:
    """A connection to a Ray cluster.

    Args:
        address: HOST:PORT of the cluster's head, or ``auto``; None: that, or a Ray of its own.
        num_cpus: CPUs of a Ray of its own. None: all cores.
    """

    def __init__(self, address: str | None, num_cpus: int | None) -> None:
        """Connect.

        Raises:
            ConfigError: There is no such cluster, or its Ray or Python is another version.
        """
        import ray

        self.ray: Any = ray
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            if address and ":" in address:
                _knock(_split(address))  # Ray itself would wait for minutes
            self._connect(address, num_cpus)
        # Where no head answers, Ray sends this process a SIGTERM, which it makes an exit.
        except (Exception, SystemExit) as error:
            raise _no_cluster(address, error) from error
        context = ray.get_runtime_context()
        self._head, self._node = _split(context.gcs_address), context.get_node_id()
        self._looked = self._seen = time.monotonic()
        self.num_cpus = self._count_cpus()

    def check(self) -> None:
        """Look, now and then, whether the cluster is there; count its CPUs anew.

        Raises:
            DuetError: Its head has been gone for long, or this machine is no node of it any more.
        """
        now = time.monotonic()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        try:
            _knock(self._head)
        except OSError as error:
            if now - self._seen > _SECONDS_WITHOUT_HEAD:
                raise cluster_died(f"its head does not answer: {error}") from error
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
            raise cluster_died("this machine is no node of it any more")
        return int(sum(node["Resources"].get("CPU", 0) for node in nodes.values()))


def cluster_died(got: object) -> DuetError:
    """Return the one line that says so."""
    return DuetError(
        "the Ray cluster died",
        where="--engine ray",
        got=got,
        do="start it again, then the same command: finished parts are kept",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says."""
    return next(iter(str(error).splitlines()), "")


def _no_cluster(address: str | None, error: BaseException) -> ConfigError:
    said = "no answer" if isinstance(error, SystemExit) else first_line(error)
    return ConfigError(
        "no Ray cluster can be joined or started",
        where="--ray-address",
        got=f"{address or 'none given'}: {said}",
        do="start it (ray start --head, and on the other nodes ray start --address HOST:PORT), "
        "with the same Ray and Python everywhere, and give HOST:PORT of its head",
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _knock(address: tuple[str, int]) -> None:
    socket.create_connection(address, _SECONDS_TO_CONNECT).close()
