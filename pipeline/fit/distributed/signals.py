"""Signals that ask a run to stop: taken note of at once, obeyed after the step.

A scheduler that takes a machine back sends SIGTERM and, some seconds later, SIGKILL; ctrl-c is
SIGINT. A signal may reach one process of several: each step adds up who was asked, in the same
reduction as the loss, so that all of them stop after the same step and none waits for another. An
evaluation, which may take minutes, adds it up before each batch, and ends there.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # which imports torch
    from pipeline.fit.distributed.host_group import HostGroup

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What stops a run; where both came, the first of these counts."""
_SAME_REQUEST = 0.5
"""Seconds in which another signal is the same request: a scheduler signals every process, and a
launcher passes on what it got itself."""


class GracefulShutdown:
    """Whether this process was asked to stop; a context in which signals ask, and do not kill.

    Outside the main thread, where Python has no signals, it is never asked. The second request
    ends the process as it would have ended without this.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._when = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # Not those that the process was started to ignore.
                if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def flags(self) -> list[float]:
        """Return 1.0 for each of ``SIGNALS`` that came, else 0.0, for a sum over all processes."""
        return [float(number == self._asked) for number in SIGNALS]

    def agreed(self, group: "HostGroup") -> signal.Signals | None:
        """Return the signal by which any process was asked to stop; the same in all of them."""
        return asked_for(group.sum(self.flags()))

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked, self._when = signal.Signals(number), now
            # Not print: the signal may have come in the middle of one.
            text = f"note: {self._asked.name}: stopping after this step; again: at once\n"
            os.write(2, text.encode())
        elif now - self._when > _SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def asked_for(flags: Sequence[float]) -> signal.Signals | None:
    """Return the signal of ``GracefulShutdown.flags``, summed over all processes.

    >>> asked_for([0.0, 2.0]).name
    'SIGINT'
    """
    return next((number for number, count in zip(SIGNALS, flags, strict=True) if count), None)


def exit_code(number: signal.Signals) -> int:
    """Return the code that shells and schedulers know a process by that a signal ended.

    >>> exit_code(signal.SIGTERM), exit_code(signal.SIGINT)
    (143, 130)
    """
    return 128 + number
