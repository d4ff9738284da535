"""Settings of the second stage: how to train on given rows.

``training``, ``monitoring`` and ``model`` hold the settings, in the order in which ``--help`` shows
them; here is what they say together, and the views that builders take.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.config.fields import parse_kwargs, require, shared_values
from pipeline.config.fit_options.model import ModelOptions
from pipeline.config.fit_options.monitoring import MonitoringOptions
from pipeline.config.fit_options.training import TrainingOptions
from pipeline.config.views import (
    LoraSettings,
    OptimizerSettings,
    ScheduleSettings,
    Sharding,
    StepSettings,
)

TRACKERS = ("tensorboard", "wandb", "trackio")
EVAL_METRICS = ("loss", "bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class FitOptions(ModelOptions, MonitoringOptions, TrainingOptions):
    """What decides a training run on given rows. Defaults are the Hugging Face trainer's."""

    takes_trainer_flags: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            not (self.lora_r and self.from_scratch),
            "lora_r",
            self.lora_r,
            "give 0 with --from-scratch: an adapter needs a base model that is saved",
        )
        require(
            self.quantize is None or self.lora_r > 0,
            "quantize",
            self.quantize,
            "give --lora-r 16 too, or leave it out: 4-bit weights cannot be trained",
        )
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            value = getattr(self, name)
            require(
                self.lora_r != 0 or value == getattr(FitOptions, name),  # its default
                name,
                value,
                "give --lora-r 16 too, or leave it out: without a rank all weights are trained",
            )
        metrics = [f"{n}_{v}" if n else v for n in self.eval_names for v in EVAL_METRICS]
        require(
            self.best_metric is None or self.best_metric.removeprefix("eval_") in metrics,
            "metric_for_best_model",
            self.metric_for_best_model,
            "give " + ", ".join(metrics),
        )
        unknown = [name for name in self.trackers if name not in TRACKERS]
        require(not unknown, "report_to", self.report_to, "give none, " + ", ".join(TRACKERS))
        _ = self.sharding, self.scheduler_kwargs  # which refuse what they cannot read

    @property
    def eval_names(self) -> tuple[str, ...]:
        """What is evaluated: a run's own split, which has no name, and further folders."""
        return ("",)

    @property
    def best_metric(self) -> str | None:
        """The value of an evaluation that says which is best; None: no best is looked for."""
        name = self.metric_for_best_model
        if name is None and (self.load_best_model_at_end or self.early_stopping_patience):
            name = "loss"
        return name if name is None or name.startswith("eval_") else f"eval_{name}"

    @property
    def lora(self) -> LoraSettings | None:
        """The adapter; None where all weights are trained."""
        if not self.lora_r:
            return None
        named = self.lora_target_modules
        return LoraSettings(
            r=self.lora_r,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            target_modules=None if named is None else tuple(map(str.strip, named.split(","))),
            seed=self.seed,
        )

    @property
    def sharding(self) -> Sharding | None:
        """How the model is sharded, over several processes; None where each holds it whole."""
        return Sharding.parse(self.fsdp, self.fsdp_transformer_layer_cls_to_wrap)

    @property
    def scheduler_kwargs(self) -> dict[str, Any]:
        """What ``--lr-scheduler-kwargs`` says.

        Raises:
            ConfigError: It is neither JSON of an object nor ``NAME=VALUE`` with commas.
        """
        return parse_kwargs(self.lr_scheduler_kwargs or "", "lr_scheduler_kwargs")

    @property
    def steps(self) -> StepSettings:
        """How many steps there are, and what is due when."""
        return StepSettings(**shared_values(self, StepSettings))

    @property
    def optimizer(self) -> OptimizerSettings:
        """What the optimizer is made with."""
        return OptimizerSettings(**shared_values(self, OptimizerSettings))

    @property
    def schedule(self) -> ScheduleSettings:
        """The learning rate at each step."""
        return ScheduleSettings(**shared_values(self, ScheduleSettings))

    @property
    def trackers(self) -> list[str]:
        """The trackers to report to; empty for ``none``."""
        names = [name.strip() for name in self.report_to.split(",")]
        return [name for name in names if name not in ("", "none")]
