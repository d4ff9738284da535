"""What a run says on stderr while it runs: notes, and a bar on a terminal or lines in a log."""

import os
import sys
import time
from types import TracebackType
from typing import Any, Self

_SECONDS_BETWEEN_LINES = 10.0


def note(text: str) -> None:
    """Print one line on stderr; of several processes of a run, the first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)


class ByteProgress:
    """Shows how far a stream of bytes is read: share, rate, time left, and what came out.

    >>> with ByteProgress("reading", 100) as progress:
    ...     progress.advance(50)
    ...     progress.status = "3 records"
    """

    def __init__(self, title: str, total: int) -> None:
        """``total`` in bytes; nothing is drawn before the ``with`` block is entered."""
        self.status = ""
        self._title, self._total, self._done = title, max(total, 1), 0
        self._start = self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start the bar on a terminal."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, status="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size: int) -> None:
        """Take note of ``size`` more bytes."""
        self._done += size
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, status=self.status)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        return (
            f"{self._title}: {100 * self._done / self._total:.0f} % of {self._total / 1e6:.1f} MB, "
            f"{rate / 1e6:.1f} MB/s, {left:.0f} s left, {self.status}"
        )
