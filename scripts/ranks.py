"""Starts processes of one run without a launcher, each with its imports done: a second, not ten.

They are forked from a server that has imported the second stage and has computed nothing. Such a
process joins the others on gloo as under ``torchrun``, which has tests of its own.
"""

import functools
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PRELOADED = (
    "pipeline.fit.stage",
    "accelerate",
    "transformers.models.t5.modeling_t5",
    "transformers.optimization",  # with peft and bitsandbytes: half of what is imported
)


class RankError(Exception):
    """Processes of a run ended otherwise than they should; with what each said."""


class Ranks:
    """Processes of a run, started; each calls the same function."""

    def __init__(
        self,
        count: int,
        function: Callable[..., Any],
        *args: Any,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start them.

        Args:
            count: How many.
            function: What each calls, as ``SystemExit`` or an exception ends it; importable.
            args: Its arguments, pickled.
            folder: Where what each says on stderr is kept, as ``rank-N.txt``.
            environment: More variables for each.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._said = [folder / f"rank-{rank}.txt" for rank in range(count)]
        shared = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
        if count > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        self.processes = []
        for rank, said in enumerate(self._said):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            process = _server().Process(
                target=_run, args=(function, args, shared | own, str(said)), daemon=True
            )
            process.start()
            self.processes.append(process)

    def said(self, rank: int = 0) -> str:
        """Return what a process has said so far."""
        return self._said[rank].read_text("utf-8") if self._said[rank].exists() else ""

    def wait_for(self, words: str, rank: int = 0, timeout: float = 300) -> None:
        """Wait until a process has said some words.

        Raises:
            RankError: It has ended, or the time is over, and it has not.
        """
        deadline = time.monotonic() + timeout
        while words not in self.said(rank):
            ended = not self.processes[rank].is_alive() and words not in self.said(rank)
            if ended or time.monotonic() > deadline:
                raise RankError(f"no {words!r} in: {self.said(rank)}")
            time.sleep(0.05)

    def end(self, timeout: float = 300) -> list[int | None]:
        """Return the exit codes when all have ended; None for one that had to be killed then."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes


def run_in(
    count: int, function: Callable[..., Any], *args: Any, folder: Path, expect: int = 0
) -> str:
    """Call a function in so many processes of one run; return what the first said on stderr.

    Raises:
        RankError: One of them did not end with the code that was expected.
    """
    ranks = Ranks(count, function, *args, folder=folder)
    codes = ranks.end()
    if codes != [expect] * count:
        raise RankError(f"{codes}\n" + "\n".join(ranks.said(rank) for rank in range(count)))
    return ranks.said()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], said: str
) -> None:
    """Call the function with an environment and an stderr of its own; in the new process."""
    import torch

    os.environ.update(environment)
    with Path(said).open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    torch.set_num_threads(1)
    try:
        function(*args)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the others may be gone, and torch would wait for them
