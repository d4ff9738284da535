"""One process of a node works, the others wait for its word in a file, never in a collective.

A collective would time out: preparing may take longer than any limit that a launcher sets. The
word lies on the node's own disk, so nodes without a shared one each have a worker. It works under a
lock, which the system takes from a process that dies: the others then end with one line.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pipeline.errors import DuetError
from pipeline.json_object import read_json_object
from pipeline.store.atomic import write_file
from pipeline.world import World

_POLL_SECONDS = 0.2
_SECONDS_TO_APPEAR = 300.0
_calls = itertools.count()
"""Numbers the calls of a launch: all its processes make the same ones in the same order."""


def once_per_node(work: Callable[[], Path], folder: Path) -> Path:
    """Run ``work`` in the first process of each node and return its result in all of them.

    Args:
        work: Returns a path.
        folder: On this node's disk, for the word of it.

    Raises:
        DuetError: The working process failed or died.
    """
    world = World.from_environment()
    if world.local_size == 1:
        return work()
    word = folder / ".runs" / f"{_launch_id()}-{next(_calls)}.json"
    lock = FileLock(word.with_suffix(".lock"))
    if world.local_rank != 0:
        return _wait_for(word, lock)
    word.parent.mkdir(parents=True, exist_ok=True)
    with lock:
        write_file(word, json.dumps({"pid": os.getpid()}))
        try:
            result = work()
        except BaseException as error:
            write_file(word, json.dumps({"failed": str(error) or type(error).__name__}))
            raise
        write_file(word, json.dumps({"result": str(result.absolute())}))
    return result


def _launch_id() -> str:
    """Name this launch on this node: its processes have one parent, started at one time."""
    parent = os.getppid()
    started = ""
    with contextlib.suppress(OSError, IndexError):
        # Field 22 of stat; the name before it, in brackets, may hold spaces.
        stat = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8")
        started = stat.rpartition(")")[2].split()[19]
    return f"{parent}-{started}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _wait_for(word: Path, lock: FileLock) -> Path:
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while not word.exists():  # then the worker has the lock, or has had it
        if time.monotonic() > deadline:
            raise _ended("did not start", f"no {word.name} in {_SECONDS_TO_APPEAR:.0f} s")
        time.sleep(_POLL_SECONDS)
    with lock.acquire(poll_interval=_POLL_SECONDS):
        content = read_json_object(word)
    if "result" in content:
        return Path(content["result"])
    if "failed" in content:
        raise _ended("failed", content["failed"])
    raise _ended("died", f"process {content['pid']} is gone")


def _ended(how: str, got: str) -> DuetError:
    return DuetError(
        f"the process that prepares {how}",
        where="local rank 0",
        got=got,
        do="see its own message above; then start again",
    )
