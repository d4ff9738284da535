"""What a run says while it trains: a bar on a terminal, plain lines in a log, trackers; a table.

Everything goes to stderr, from the main process alone.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from pipeline.console.progress import Bar
from pipeline.console.units import counted, duration, percent
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.schedule import RunPlan
from pipeline.fit.training.samples import FILE as SAMPLES_FILE
from pipeline.fit.training.samples import Sample, append_samples, keep_samples
from pipeline.fit.training.trackers import Trackers
from pipeline.store.atomic import output_errors, write_file
from pipeline.store.summary import table_row

_FORMATS: dict[str, Callable[[float], str]] = {
    "target_tokens_per_second": "{:,.0f}".format,
    "mfu": percent,
    "mfu_datasheet": percent,
    "padding_share": percent,
    "data_wait_share": percent,
    "peak_memory_gib": "{:.1f}".format,
    "seconds_left": duration,
    "eval_runtime": duration,
    "train_runtime": duration,
}
"""How values of an entry are shown that are no plain numbers."""


LOG_FILE = "log.jsonl"
"""In the output folder: each log entry as it comes, one JSON object a line."""


class Reporter:
    """Shows steps and log entries, and passes the entries on to ``log.jsonl`` and the trackers.

    Args:
        trackers: To pass entries on to.
        is_main: Whether this is the process that reports.
        total_steps: Of the run.
        log: The entries so far. The file begins with these, so that a resumed run has no entry
            twice, and none that its checkpoint does not know.
    """

    def __init__(
        self,
        trackers: Trackers,
        *,
        is_main: bool,
        total_steps: int,
        log: Sequence[Mapping[str, float]],
    ) -> None:
        self._is_main, self._total, self._log = is_main, total_steps, log
        self._path, self._trackers = trackers.output / LOG_FILE, trackers
        start = trackers.first_step
        self._bar = Bar("training", total_steps, unit="steps", start=start, shown=is_main)

    def __enter__(self) -> Self:
        if self._is_main:
            write_file(self._path, "".join(map(_json_line, self._log)))
            keep_samples(self._trackers.output, set(map(_evaluated_step, self._log)))
        self._trackers.start()
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()
        self._trackers.finish()

    def step_done(self, step: int, loss: float, rate: float) -> None:
        """Show that a step is done, on a terminal."""
        self._bar.update(step, f"loss {loss:.4f}, learning rate {rate:.2e}")

    def entry(self, values: Mapping[str, float]) -> None:
        """Print a log entry, add it to the file and send it to the trackers."""
        if self._is_main:
            self._bar.print(self._line(values))
            with output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(_json_line(values))
            self._trackers.log(_tracked(values), step=int(values["step"]))

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        """Add the sample answers of an evaluation to their file and send them to the trackers."""
        if self._is_main and samples:
            append_samples(self._trackers.output, step, samples)
            ended = sum(sample["finish_reason"] == "stop" for sample in samples)
            self._bar.print(
                f"step {step}/{self._total}: {len(samples)} sample answers in {SAMPLES_FILE}, "
                f"{ended} of them ended by themselves"
            )
            self._trackers.log_table("eval/samples", samples, step=step)

    def _line(self, values: Mapping[str, float]) -> str:
        shown = (
            f"{name} {_FORMATS.get(name, '{:.4g}'.format)(value)}"
            for name, value in values.items()
            if name != "step"
        )
        return f"step {values['step']}/{self._total}: " + ", ".join(shown)


def _evaluated_step(entry: Mapping[str, float]) -> int:
    """Return the step of an entry of an evaluation; of another -1."""
    return int(entry["step"]) if any(name.startswith("eval_") for name in entry) else -1


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


def _json_line(values: Mapping[str, float]) -> str:
    """Return an entry as a line of JSON, which has no NaN and no infinity: null.

    >>> _json_line({"loss": float("nan"), "step": 3})
    '{"loss": null, "step": 3}\\n'
    """
    known = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps(known) + "\n"


def end_table(state: RunState, plan: RunPlan, output: Path, *, best_step: int = 0) -> Iterator[str]:
    """Yield the lines of the table, for a run whose model is written.

    Args:
        state: Where it ended.
        plan: What it was to be.
        output: The trained folder.
        best_step: The step whose weights those of the model are; 0: the last one's.
    """
    epochs = f"{plan.epoch_at(state.step):.4g} epochs"
    each = f"at most {counted(plan.global_batch_size, 'example')} each"
    stopped = f", of {plan.total_steps:,}: stopped early" if state.stopped_early else ""
    yield table_row("steps", state.step, f"{epochs}, {each}{stopped}")
    rate = state.rows_seen / max(state.seconds, 1e-9)
    yield table_row(
        "time", duration(state.seconds), f"{rate:,.1f} examples/s, evaluations included"
    )
    mean = f"mean of the run {state.whole.mean():.4g}"
    if (last := _last(state.log, "loss")) is not None:
        yield table_row("loss", f"{last['loss']:.4g}", f"step {last['step']:,.0f}; {mean}")
    else:
        yield table_row("loss", f"{state.whole.mean():.4g}", "mean of the run")
    yield from _evaluations(state)
    if best_step:
        yield table_row("weights of", f"checkpoint-{best_step}", "the best evaluation")
    yield f"{'trained model':<28}{output}"
    yield f"{'talk to it':<28}duet chat {shlex.quote(str(output))}"


def _evaluations(state: RunState) -> Iterator[str]:
    """Yield the last loss of each eval set, with its bits per byte."""
    names = dict.fromkeys(name for entry in state.log for name in entry if _is_eval_loss(name))
    for name in names:
        found = _last(state.log, name)
        assert found is not None
        bits = found.get(name.removesuffix("loss") + "bits_per_byte")
        remark = "" if bits is None else f"{bits:.4g} bits per byte; "
        yield table_row(name, f"{found[name]:.4g}", f"{remark}step {found['step']:,.0f}")


def _is_eval_loss(name: str) -> bool:
    return name.startswith("eval_") and name.endswith("loss")


def _last(log: Sequence[Mapping[str, float]], name: str) -> Mapping[str, float] | None:
    return next((entry for entry in reversed(log) if name in entry), None)
