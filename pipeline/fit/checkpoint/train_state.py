"""What training changes: model, optimizer, schedule, generators, and what a run has done so far.

The last is written as ``trainer_state.json``, in the form that ``transformers.TrainerState`` reads,
with the sums that a run needs to resume in the middle of a log entry beside it.
"""

import dataclasses
import json
import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline.fit.schedule import RunPlan


@dataclass(kw_only=True, slots=True)
class Sums:
    """Loss and target tokens of some steps, over all processes."""

    loss: float = 0.0
    tokens: int = 0

    def add(self, loss: float, tokens: int) -> None:
        """Take in the sum of a step's token losses, and their number."""
        self.loss += loss
        self.tokens += tokens

    def mean(self) -> float:
        """Return the loss of a token; NaN where there is none."""
        return self.loss / self.tokens if self.tokens else math.nan


@dataclass(kw_only=True, slots=True)
class RunState:
    """Where a run stands after ``step`` optimizer steps."""

    step: int = 0
    tokens_seen: int = 0
    """Encoder and decoder tokens trained on, padding not counted."""
    rows_seen: int = 0
    seconds: float = 0.0
    """Time spent training, over all the sessions of a run."""
    window: Sums = field(default_factory=Sums)
    """Steps since the last log entry."""
    whole: Sums = field(default_factory=Sums)
    """All steps."""
    evaluation_is_due: bool = False
    """Whether the evaluation after this step is still to come: a signal ended it."""
    best_metric: float | None = None
    """Of the best evaluation so far."""
    best_step: int = 0
    """The step after which it was; 0: none."""
    best_model_checkpoint: str | None = None
    """Where its checkpoint is, if it is kept."""
    evaluations_without_gain: int = 0
    """Evaluations in a row that were not better than the best by enough."""
    stopped_early: bool = False
    """Whether the run ended for want of a better one."""
    log: list[dict[str, float]] = field(default_factory=list)

    def progress(self) -> dict[str, Any]:
        """Return all but the log as JSON values, for ``from_progress``."""
        values = dataclasses.asdict(self)
        del values["log"]
        return values

    @classmethod
    def from_progress(cls, values: dict[str, Any], log: list[dict[str, float]]) -> "RunState":
        """Return the state that ``progress`` was taken of.

        Raises:
            KeyError, TypeError: The values are of another version.
        """
        window, whole = Sums(**values["window"]), Sums(**values["whole"])
        state = cls(**values | {"window": window, "whole": whole, "log": log})
        counts = (
            *(state.step, state.tokens_seen, state.rows_seen, window.tokens, whole.tokens),
            *(state.best_step, state.evaluations_without_gain),
        )
        known = all(isinstance(value, int) for value in counts)
        for value in (state.seconds, window.loss, whole.loss):
            known = known and isinstance(value, (int, float))
        for value in (state.evaluation_is_due, state.stopped_early):
            known = known and isinstance(value, bool)
        if not (known and isinstance(log, list) and all(isinstance(e, dict) for e in log)):
            raise TypeError("a value of a wrong type in its progress or its log")
        return state


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """All that a checkpoint holds, as it is trained: kept up to date in place."""

    model: torch.nn.Module
    """With its loss; wrapped or sharded."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    progress: RunState

    @property
    def unwrapped_model(self) -> Any:
        """The transformers model, without its loss and DistributedDataParallel."""
        wrapped: Any = self.model
        while hasattr(wrapped, "module"):
            wrapped = wrapped.module
        return wrapped.model


def trainer_state_json(state: RunState, plan: RunPlan, *, rows_at_once: int) -> str:
    """Return the content of ``trainer_state.json``; ``rows_at_once`` on a device."""
    values: dict[str, Any] = {
        "best_global_step": state.best_step or None,
        "best_metric": state.best_metric,
        "best_model_checkpoint": state.best_model_checkpoint,
        "epoch": plan.epoch_at(state.step),
        "eval_steps": plan.evaluation.every or plan.total_steps,
        "global_step": state.step,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": state.log,
        "logging_steps": plan.logging.every,
        "max_steps": plan.total_steps,
        "num_input_tokens_seen": state.tokens_seen,
        "num_train_epochs": math.ceil(plan.total_steps / plan.steps_per_epoch),
        "save_steps": plan.saving.every or plan.total_steps,
        "stateful_callbacks": {},
        "total_flos": 0,
        "train_batch_size": rows_at_once,
        "trial_name": None,
        "trial_params": None,
    }
    return json.dumps(values, indent=2) + "\n"


def rng_state() -> dict[str, Any]:
    """Return the states of Python's, numpy's, torch's and the GPU's generator.

    All of it is tensors, numbers and strings, so that ``torch.load(weights_only=True)`` reads it.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put every generator back to where ``rng_state`` found it."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def rng_file(process: int, processes: int) -> str:
    """Return the name of the file with the generators of a process."""
    return "rng_state.pth" if processes == 1 else f"rng_state_{process}.pth"
