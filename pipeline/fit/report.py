"""What a run says while it trains: a bar on a terminal, plain lines in a log, trackers.

Everything goes to stderr, from the main process alone.
"""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

_WORDS = {
    "loss": "loss",
    "grad_norm": "grad norm",
    "learning_rate": "rate",
    "eval_loss": "eval loss",
    "eval_bits_per_byte": "bits per byte",
    "train_loss": "mean loss",
    "train_runtime": "seconds",
}


class Reporter:
    """Shows steps and log entries, and passes the entries on to the trackers."""

    def __init__(self, accelerator: Any, total_steps: int, first_step: int) -> None:
        """``first_step``: steps that were done before this sitting."""
        self._accelerator, self._total, self._first = accelerator, total_steps, first_step
        self._start = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start the bar, on a terminal."""
        if self._accelerator.is_main_process and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self._total, completed=self._first, status=""
            )
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

    def step_done(self, step: int, loss: float, rate: float) -> None:
        """Show that a step is done, on a terminal."""
        if self._bar is not None:
            status = f"loss {loss:.4f}, rate {rate:.2e}"
            self._bar.update(self._task, completed=step, status=status)

    def entry(self, values: Mapping[str, float]) -> None:
        """Print a log entry and send it to the trackers."""
        if self._accelerator.is_main_process:
            self._print(self._line(values))
        self._accelerator.log(_tracked(values), step=int(values["step"]))

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self, values: Mapping[str, float]) -> str:
        step = int(values["step"])
        shown = [f"{word} {values[name]:.4g}" for name, word in _WORDS.items() if name in values]
        if "loss" in values and self._first < step < self._total:
            rate = (time.monotonic() - self._start) / (step - self._first)
            shown.append(f"{(self._total - step) * rate:.0f} s left")
        return f"step {step}/{self._total}: " + ", ".join(shown)


def _tracked(values: Mapping[str, float]) -> dict[str, float]:
    """Return an entry under the names that the Hugging Face trainer gives to trackers.

    >>> _tracked({"loss": 2.0, "eval_loss": 1.0, "step": 3})
    {'train/loss': 2.0, 'eval/loss': 1.0}
    """
    return {
        f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in values.items()
        if name != "step"
    }
