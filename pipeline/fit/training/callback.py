"""What a run tells of itself while it goes on: the hooks for benchmarks, comparisons and tests."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.fit.training.step import StepResult
    from pipeline.fit.training.trainer import Trainer


class TrainerCallback:
    """Called by the trainer, in each process; what is not overridden does nothing.

    The names are those of transformers' own. An error raised here ends the run as any other does.
    """

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Everything is built and restored; no step is taken yet."""

    def on_step_begin(self, step: int) -> None:
        """A step begins; counted from 1."""

    def on_step_end(self, step: int, result: "StepResult") -> None:
        """A step is done, and nothing is logged, evaluated or saved after it yet."""

    def on_save(self, step: int) -> None:
        """The state after a step is copied, and is being written or is written."""

    def on_prediction_step(self) -> None:
        """A batch of an evaluation begins."""
