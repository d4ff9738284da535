"""What a run says while it trains: a bar on a terminal, plain lines in a log, trackers.

Everything goes to stderr, from the main process alone.
"""

import time
from collections.abc import Mapping
from typing import Any, Self

from pipeline.progress import Bar

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
        self._began = time.monotonic()
        self._bar = Bar(
            "training",
            total_steps,
            unit="steps",
            start=first_step,
            shown=accelerator.is_main_process,
        )

    def __enter__(self) -> Self:
        """Start the bar, on a terminal."""
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self._bar.__exit__()

    def step_done(self, step: int, loss: float, rate: float) -> None:
        """Show that a step is done, on a terminal."""
        self._bar.update(step, f"loss {loss:.4f}, rate {rate:.2e}")

    def entry(self, values: Mapping[str, float]) -> None:
        """Print a log entry and send it to the trackers."""
        if self._accelerator.is_main_process:
            self._bar.print(self._line(values))
        self._accelerator.log(_tracked(values), step=int(values["step"]))

    def _line(self, values: Mapping[str, float]) -> str:
        step = int(values["step"])
        shown = [f"{word} {values[name]:.4g}" for name, word in _WORDS.items() if name in values]
        if "loss" in values and self._first < step < self._total:
            rate = (time.monotonic() - self._began) / (step - self._first)
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
