"""Which evaluation was the best so far, and when to stop for want of a better one.

The rules are those of the Hugging Face trainer's ``--load-best-model-at-end`` and of its
``EarlyStoppingCallback``. What is known of the best stands in the run's state, so a resumed run
remembers it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.fit.checkpoint.train_state import RunState


@dataclass(frozen=True, kw_only=True, slots=True)
class BestModelTracker:
    """Compares each evaluation with the best one before it."""

    output: Path
    metric: str | None = None
    """The value of an evaluation that is compared; None: no best is looked for."""
    greater_is_better: bool = False
    keeps_best: bool = False
    """Whether the best checkpoint is kept, and is the trained model at the end."""
    patience: int | None = None
    """Evaluations in a row without a better one, after which the run stops; None: never."""
    threshold: float = 0.0
    """How much better one must be for the patience."""

    def update(self, state: RunState, values: Mapping[str, float]) -> None:
        """Take in an evaluation."""
        if self.metric is None or self.metric not in values:  # only other folders are evaluated
            return
        value, best = values[self.metric], state.best_metric
        better = value == value if best is None else self._gain(value, best) > 0
        enough = better and (best is None or self._gain(value, best) > self.threshold)
        state.evaluations_without_gain = 0 if enough else state.evaluations_without_gain + 1
        if better:
            state.best_metric, state.best_step = value, state.step
            if self.keeps_best:
                state.best_model_checkpoint = str(self.output / f"checkpoint-{state.step}")
        if self.patience is not None and state.evaluations_without_gain >= self.patience:
            state.stopped_early = True

    def protected(self, state: RunState) -> set[int]:
        """Return the steps whose checkpoints must stay."""
        return {state.best_step} if self.keeps_best and state.best_step else set()

    def _gain(self, value: float, best: float) -> float:
        return value - best if self.greater_is_better else best - value
