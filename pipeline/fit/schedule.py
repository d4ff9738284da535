"""Settings and a number of rows -> what happens at which optimizer step.

All that a run does is decided here before the first step: how many rows a step takes, how many
steps there are, and after which of them there is a log entry, an evaluation, a checkpoint.
Steps are counted from 1: step N is done when N steps are.
"""

import math
from dataclasses import dataclass

from pipeline.config import Strategy
from pipeline.config.views import StepSettings
from pipeline.console.units import counted
from pipeline.errors import ConfigError

_EPSILON = 1e-9  # 0.07 * 100 is a little more than 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """After which steps something happens: every so many, at the ends of epochs, at the last."""

    every: int | None = None
    each_epoch: bool = False
    at_end: bool = False

    def __bool__(self) -> bool:
        """Return whether it ever happens."""
        return self.every is not None or self.each_epoch or self.at_end


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """The steps of a run."""

    global_batch_size: int
    rows_source: str
    """Where the global batch size came from, in words."""
    steps_per_epoch: int
    total_steps: int
    logging: Schedule
    evaluation: Schedule
    saving: Schedule

    def due(self, schedule: Schedule, step: int) -> bool:
        """Return whether something that follows ``schedule`` happens after ``step``."""
        if schedule.every is not None and step % schedule.every == 0:
            return True
        if schedule.each_epoch and step % self.steps_per_epoch == 0:
            return True
        return schedule.at_end and step == self.total_steps

    def epoch_at(self, step: int) -> float:
        """Return the epochs done after a step."""
        return step / self.steps_per_epoch


def plan_run(options: StepSettings, *, num_rows: int, eval_rows: int, processes: int) -> RunPlan:
    """Plan a run on so many rows, in which so many processes share a step.

    Raises:
        ConfigError: There is nothing to train on, or nothing to evaluate on that was asked for.
    """
    if num_rows < 1:
        raise ConfigError(
            "there is nothing to train on",
            where="--data-path",
            got="no examples",
            do="prepare more data",
        )
    global_batch_size, source = _global_batch_size(options, processes)
    steps_per_epoch = math.ceil(num_rows / global_batch_size)
    total = options.max_steps
    if total < 1:
        total = max(1, math.ceil(options.num_train_epochs * steps_per_epoch - _EPSILON))
    evaluation = _evaluation(options, eval_rows, total)
    saving = _repeated(options.save_strategy, options.save_steps, total)
    _check_best(options, evaluation, saving)
    return RunPlan(
        global_batch_size=global_batch_size,
        rows_source=source,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        logging=Schedule(every=steps_of(options.logging_steps, total), at_end=True),
        evaluation=evaluation,
        saving=saving,
    )


def _check_best(options: StepSettings, evaluation: Schedule, saving: Schedule) -> None:
    """Refuse what an evaluation is for where there is none, a best model without checkpoints."""
    asked = {
        "--load-best-model-at-end": options.load_best_model_at_end,
        "--early-stopping-patience": options.early_stopping_patience,
        "--eval-samples": options.eval_samples,
    }
    for name in (name for name, value in asked.items() if value and not evaluation):
        raise ConfigError(
            "it takes an evaluation",
            where=name,
            got="no evaluation in this run",
            do="give --eval-steps, and prepare with --eval-fraction",
        )
    every, save_every = evaluation.every, saving.every
    fits = saving.each_epoch and evaluation.each_epoch
    fits = fits or (every is not None and save_every is not None and save_every % every == 0)
    if options.load_best_model_at_end and not fits:
        raise ConfigError(
            "checkpoints do not fall on evaluations",
            where="--load-best-model-at-end",
            got=f"saves {_words(saving)}, evaluations {_words(evaluation)}",
            do="give --save-steps a multiple of --eval-steps, or both strategies epoch",
        )


def _words(schedule: Schedule) -> str:
    if schedule.each_epoch:
        return "each epoch"
    if schedule.every is not None:
        return f"every {schedule.every} steps"
    return "at the end alone" if schedule else "never"


def _global_batch_size(options: StepSettings, processes: int) -> tuple[int, str]:
    device, steps = options.per_device_train_batch_size, options.gradient_accumulation_steps
    if options.train_batch_size is not None:
        rows = options.train_batch_size
        return (
            rows,
            f"from --train-batch-size, micro-batches of at most {device} of the longest examples",
        )
    several = counted(processes, "process", "processes")
    accumulated = counted(steps, "accumulation step")
    return device * processes * steps, f"= {device} per device x {several} x {accumulated}"


def steps_of(value: float, total: int) -> int:
    """Return a number of steps; a value below 1 is a share of all steps, rounded up.

    >>> steps_of(500, 2000), steps_of(0.07, 100), steps_of(0.1, 5)
    (500, 7, 1)
    """
    return max(1, math.ceil((value * total if value < 1 else value) - _EPSILON))


def _repeated(strategy: Strategy, steps: float, total: int) -> Schedule:
    if strategy == "no":
        return Schedule()
    if strategy == "epoch":
        return Schedule(each_epoch=True, at_end=True)
    return Schedule(every=steps_of(steps, total), at_end=True)


def _evaluation(options: StepSettings, eval_rows: int, total: int) -> Schedule:
    strategy, steps = options.eval_strategy, options.eval_steps
    if strategy == "no":
        return Schedule()
    if not eval_rows:
        if strategy is None and steps is None:
            return Schedule()
        asked = f"--eval-strategy {strategy}" if strategy else f"--eval-steps {steps}"
        raise ConfigError(
            "there is nothing to evaluate on",
            where=asked,
            got="the prepared folder has no examples in an eval split",
            do="prepare with --eval-fraction, or leave this out",
        )
    if strategy is None:
        return Schedule(every=steps_of(steps, total) if steps else None, at_end=True)
    # As the Hugging Face trainer has it: --eval-strategy steps means those steps and the last one,
    # and without --eval-steps those of --logging-steps.
    return _repeated(strategy, steps or options.logging_steps, total)
