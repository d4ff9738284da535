"""What a run says on stderr while it runs: notes, and a bar on a terminal or lines in a log.

Notes go through ``logging``, to the logger ``pipeline``, which shows them on stderr: a program that
uses this one as a library gives that logger other handlers, or none.
"""

import logging
import sys
import time
from typing import Any, Literal, Self

from pipeline.world import World

_SECONDS_BETWEEN_LINES = 10.0


def note(text: str) -> None:
    """Say one line; of several processes of a run, the first speaks for all."""
    _LOGGER.info(" ".join(text.split()))


def print_result(result: object) -> None:
    """Print what a command made on stdout, from the same process."""
    if _speaks():
        print(result)


def _speaks(_: object = None) -> bool:
    return World.from_environment().is_main


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at the time, which tests and notebooks replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("note: %(message)s"))
        self.addFilter(_speaks)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        raise AttributeError("it is sys.stderr")


_LOGGER = logging.getLogger("pipeline")
_LOGGER.setLevel(logging.INFO)
_LOGGER.propagate = False
_LOGGER.addHandler(_ToStderr())


class Bar:
    """A progress bar with rate and time left, on a terminal; elsewhere nothing is drawn.

    Args:
        title: What is going on.
        total: Where it ends, in units.
        unit: ``bytes`` or ``steps``.
        start: Where it begins.
        shown: Draw it, if stderr is a terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: Literal["bytes", "steps"],
        start: int = 0,
        shown: bool = True,
    ) -> None:
        """Nothing is drawn before the ``with`` block is entered."""
        self._title, self._total, self._unit, self._start = title, total, unit, start
        self._shown = shown and sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start the bar."""
        if self._shown:
            from rich import progress
            from rich.console import Console

            counts: list[progress.ProgressColumn] = [progress.MofNCompleteColumn()]
            if self._unit == "bytes":
                counts = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                *counts,
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[status]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._start, status=""
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    @property
    def drawn(self) -> bool:
        """Tell whether there is a terminal that shows it."""
        return self._bar is not None

    def update(self, done: int, status: str) -> None:
        """Show how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=status)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


class ByteProgress(Bar):
    """Shows how far a stream of bytes is read: share, rate, time left, and what came out.

    >>> with ByteProgress("reading", 100) as progress:
    ...     progress.advance(50)
    ...     progress.status = "3 records"
    """

    def __init__(self, title: str, total: int) -> None:
        """``total`` in bytes."""
        super().__init__(title, max(total, 1), unit="bytes")
        self.status = ""
        self._done = 0
        self._began = self._last = time.monotonic()

    def advance(self, size: int) -> None:
        """Take note of ``size`` more bytes."""
        self._done += size
        self.update(self._done, self.status)
        if not self.drawn and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.print(self._line())

    def _line(self) -> str:
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        return (
            f"{self._title}: {100 * self._done / self._total:.0f} % of {self._total / 1e6:.1f} MB, "
            f"{rate / 1e6:.1f} MB/s, {left:.0f} s left, {self.status}"
        )
