"""What a run says while it trains: a bar on a terminal, plain lines in a log, trackers.

Everything goes to stderr, from the main process alone.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Self

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.logs import Bar

_WORDS: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.4g}".format,
    "grad_norm": "grad norm {:.4g}".format,
    "learning_rate": "rate {:.4g}".format,
    "eval_loss": "eval loss {:.4g}".format,
    "eval_bits_per_byte": "bits per byte {:.4g}".format,
    "train_loss": "mean loss {:.4g}".format,
    "train_runtime": "seconds {:.4g}".format,
    "target_tokens_per_second": "{:,.0f} target tokens/s".format,
    "mfu": lambda share: f"{percent(share)} of peak",
    "mfu_datasheet": lambda share: f"{percent(share)} of the data sheet's",
    "padding_share": lambda share: f"padding {percent(share)}",
    "data_wait_share": lambda share: f"data wait {percent(share)}",
    "peak_memory_gib": "{:.1f} GiB".format,
    "seconds_left": lambda seconds: f"{duration(seconds)} left",
}
"""What an entry's values are shown as, in this order."""


class Reporter:
    """Shows steps and log entries, and passes the entries on to the trackers."""

    def __init__(self, accelerator: Any, total_steps: int, first_step: int) -> None:
        """``first_step``: steps that were done before this sitting."""
        self._accelerator, self._total = accelerator, total_steps
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
        shown = [words(values[name]) for name, words in _WORDS.items() if name in values]
        return f"step {step}/{self._total}: " + ", ".join(shown)


def percent(share: float) -> str:
    """Return a share in hundredths.

    >>> percent(0.0417)
    '4.2 %'
    """
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Return a time in units that a person thinks in.

    >>> duration(42.3), duration(754), duration(100_000)
    ('42 s', '12 min 34 s', '27 h 46 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


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


def start_trackers(config: FitConfig, accelerator: Any) -> None:
    """Start the trackers that the settings name.

    Raises:
        ConfigError: One of them cannot start: it wants a login, a network, a disk.
    """
    if not config.trackers:
        return
    named = {"name": config.run_name} if config.run_name else {}
    try:
        accelerator.init_trackers(
            "duet", config=_plain(config), init_kwargs={"wandb": named, "trackio": named}
        )
    except Exception as error:  # each tracker has its own
        raise ConfigError(
            "a tracker cannot be started",
            where=f"--report-to {config.report_to}",
            got=error,
            do="mend what it says, or use --report-to none",
        ) from error


def _plain(config: FitConfig) -> dict[str, bool | int | float | str]:
    """Return the settings as trackers take them."""
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in values.items()
    }


def check_trackers(config: FitConfig) -> None:
    """Refuse a tracker whose package is missing, before anything takes time.

    Raises:
        ConfigError: It is not installed.
    """
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                "a tracker's package is missing",
                where=f"--report-to {name}",
                got="not installed",
                do=f"pip install {name}",
            )
