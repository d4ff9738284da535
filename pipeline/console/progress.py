"""What goes on while one waits: a line at the bottom of a terminal, a line now and then in a file.

``Bar`` is for a stage that counts its own steps; ``Wait`` for what may be over at once and may take
minutes (loading, hashing, saving): it says nothing in its first two seconds. Where the work is done
deep down, in a function that copies or hashes bytes, that one calls ``advance``.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any, Literal, Self, TypeVar

from pipeline.console.units import duration, file_size
from pipeline.world import World

_SECONDS_BETWEEN_LINES = 10.0
_MOST_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_UNTIL_SHOWN = 2.0
_REFRESH = 0.2
T = TypeVar("T")


def progress_text(title: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """Return what is going on, how far it is, its rate, and the time left.

    Args:
        title: What is going on.
        done: How much of it is done; 0 where nobody counts.
        total: How much it is; None where nobody knows.
        unit: ``bytes``, or what is counted.
        seconds: Since it began.

    >>> progress_text("hashing", 3_000_000, 12_000_000, "bytes", 2.0)
    'hashing: 25 % of 12.0 MB, 1.5 MB/s, 6 s left'
    >>> progress_text("evaluating", 30, 40, "batches", 15.0)
    'evaluating: 30 of 40 batches, 2.0/s, 5 s left'
    >>> progress_text("writing", 3_000_000, None, "bytes", 2.0), progress_text("x", 0, 9, "y", 70.0)
    ('writing: 3.0 MB, 1.5 MB/s', 'x: 1 min 10 s')
    """
    if not done:
        return f"{title}: {duration(seconds)}"
    rate = done / max(seconds, 1e-9)
    if unit == "bytes":
        share = f"{100 * done / total:.0f} % of {file_size(total)}" if total else file_size(done)
        shown = f"{share}, {file_size(rate)}/s"
    else:
        share = f"{done:,} of {total:,}" if total else f"{done:,}"
        shown = f"{share} {unit}, {rate:,.1f}/s"
    left = f", {duration(max(total - done, 0) / rate)} left" if total else ""
    return f"{title}: {shown}{left}"


class Bar:
    """A progress bar with rate and time left, on a terminal; elsewhere nothing is drawn.

    Args:
        title: What is going on.
        total: Where it ends, in units.
        unit: ``bytes`` or ``steps``.
        start: Where it begins.
        shown: Draw it, if stderr is a terminal.
    """

    live: "Bar | None" = None
    """The one that is drawn."""

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
        self._status = ""

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
            Bar.live = self
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            Bar.live = None
            self._bar.stop()

    @property
    def drawn(self) -> bool:
        """Return whether there is a terminal that shows it."""
        return self._bar is not None

    def update(self, done: int, status: str) -> None:
        """Show how far it is."""
        self._status = status
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=status)

    def say(self, text: str | None) -> None:
        """Show a text in place of the status; None: the status again."""
        if self._bar is not None:
            self._bar.update(self._task, status=self._status if text is None else text)

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
            seconds = time.monotonic() - self._began
            text = progress_text(self._title, self._done, self._total, "bytes", seconds)
            self.print(f"{text}, {self.status}")


class Wait:
    """Something that is waited for; of several inside of one another, the outermost is shown.

    Args:
        title: What is going on.
        total: How much it is, where that is known.
        unit: ``bytes``, or what is counted.
        after: Seconds in which nothing is shown.
        between: Seconds between the first lines in a file; there are fewer and fewer.

    >>> with Wait("hashing", 12, "bytes") as wait:
    ...     advance(6)
    ...     wait.done
    6
    """

    _shown: "Wait | None" = None

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "",
        *,
        after: float = _SECONDS_UNTIL_SHOWN,
        between: float = _SECONDS_BETWEEN_LINES,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        """How much of it is done."""
        self._after, self._between = after, between
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if Wait._shown is None and World.from_environment().is_main:
            Wait._shown = self
            self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            Wait._shown = None
            self._ended.set()
            self._thread.join()

    @property
    def text(self) -> str:
        """What is going on, now."""
        seconds = time.monotonic() - self._began
        return progress_text(self.title, self.done, self.total, self.unit, seconds)

    def each(self, items: Collection[T]) -> Iterator[T]:
        """Yield what is waited for, one after another, and count it."""
        self.total = len(items)
        for item in items:
            yield item
            self.done += 1

    def _show(self) -> None:
        if self._ended.wait(self._after):
            return
        if not sys.stderr.isatty():
            self._print_lines()
        elif Bar.live is not None:
            self._say_in(Bar.live)
        else:
            self._draw()

    def _print_lines(self) -> None:
        pause = self._between - self._after
        while not self._ended.wait(max(pause, 0)):
            print(self.text, file=sys.stderr, flush=True)
            pause = min(max(2 * pause, self._between), _MOST_SECONDS_BETWEEN_LINES)

    def _say_in(self, bar: Bar) -> None:
        """Show it in the line of a bar, which keeps the rest of the screen in order."""
        while not self._ended.is_set():
            bar.say(self.text)
            self._ended.wait(_REFRESH)
        bar.say(None)

    def _draw(self) -> None:
        from rich import progress
        from rich.console import Console

        text = progress.TextColumn("{task.description}", markup=False)
        columns = progress.SpinnerColumn(), text
        with progress.Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
            task = drawn.add_task(self.text, total=None)
            while not self._ended.wait(_REFRESH):
                drawn.update(task, description=self.text)


def advance(amount: int) -> None:
    """Count what is done of what is waited for; nothing where nobody waits."""
    if Wait._shown is not None:
        Wait._shown.done += amount


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Wait for PyTorch and transformers, whose import takes seconds."""
    with Wait("loading PyTorch and transformers"):
        yield
