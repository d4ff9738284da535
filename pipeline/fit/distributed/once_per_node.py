"""One process of a node works, the others wait for its word in a file, never in a collective.

A collective would time out: preparing may take longer than any limit that a launcher sets. The
word lies on the node's own disk, so nodes without a shared one each have a worker. The others end
with one line if that process dies or fails.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import DuetError
from pipeline.store.atomic import write_file
from pipeline.world import World

_POLL_SECONDS = 0.2
_SECONDS_TO_APPEAR = 300.0
_calls = itertools.count()
"""Numbers the calls of a launch: all its processes make the same ones in the same order."""


def once_per_node(work: Callable[[], Path], folder: Path, world: World) -> Path:
    """Run ``work`` in the first process of each node and return its result in all of them.

    Args:
        work: Returns a path; called in the first process of each node.
        folder: A folder on this node's disk for the word of it.
        world: Which process this is.

    Raises:
        DuetError: The working process failed or died.
    """
    if world.local_size == 1:
        return work()
    word = folder / ".runs" / f"{_launch_id()}-{next(_calls)}.json"
    if world.local_rank != 0:
        return _wait_for(word)
    _say(word, pid=os.getpid())
    try:
        result = work()
    except BaseException as error:
        _say(word, pid=os.getpid(), failed=str(error) or type(error).__name__)
        raise
    _say(word, pid=os.getpid(), result=str(result.absolute()))
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


def _say(word: Path, **content: object) -> None:
    write_file(word, json.dumps(content))


def _wait_for(word: Path) -> Path:
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while True:
        with contextlib.suppress(FileNotFoundError):
            content = json.loads(word.read_text(encoding="utf-8"))
            if "result" in content:
                return Path(content["result"])
            if "failed" in content:
                raise _ended("failed", content["failed"])
            # It may have spoken its last word and ended since the file was read.
            if not _alive(content["pid"]) and "result" not in word.read_text(encoding="utf-8"):
                raise _ended("died", f"process {content['pid']} is gone")
        if not word.exists() and time.monotonic() > deadline:
            raise _ended("did not start", f"no {word.name} in {_SECONDS_TO_APPEAR:.0f} s")
        time.sleep(_POLL_SECONDS)


def _alive(pid: int) -> bool:
    try:
        # A zombie answers signals, but works no more.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _ended(how: str, got: str) -> DuetError:
    return DuetError(
        f"the process that prepares {how}",
        where="local rank 0",
        got=got,
        do="see its own message above; then start again",
    )
