"""Settings of what a run writes: log entries, evaluations, checkpoints."""

from dataclasses import dataclass

from pipeline.config.fields import Settings, above, at_least, below, option
from pipeline.config.views import Strategy


@dataclass(frozen=True, kw_only=True)
class MonitoringOptions(Settings):
    """Log entries, evaluations, checkpoints."""

    logging_steps: float = option(
        500, above(0), help="Steps between log entries; below 1: a fraction of all steps."
    )
    eval_strategy: Strategy | None = option(
        None,
        help="Evaluation strategy: no, steps or epoch. Default: steps if --eval-steps is "
        "given; also once at the end of training, if there is an eval split.",
    )
    eval_steps: float | None = option(
        None, above(0), help="Steps between evaluations; below 1: a fraction of all steps."
    )
    save_strategy: Strategy = option("steps", help="Checkpoint save strategy: no, steps or epoch.")
    save_steps: float = option(
        500, above(0), help="Steps between checkpoints; below 1: a fraction of all steps."
    )
    save_total_limit: int | None = option(
        None,
        at_least(1),
        help="Maximum number of checkpoints to keep; the oldest are deleted. Default: all.",
    )
    save_only_model: bool = option(
        False, help="Save checkpoints without optimizer state: smaller, but they cannot be resumed."
    )
    load_best_model_at_end: bool = option(
        False,
        help="Keep the best checkpoint and write its weights as the trained model. Each "
        "save must fall on an evaluation, as in the Hugging Face trainer.",
    )
    metric_for_best_model: str | None = option(
        None,
        help="Metric that selects the best checkpoint: loss or bits_per_byte; NAME_loss for "
        "a NAME of fit's --eval-data-path. Default: loss.",
    )
    greater_is_better: bool | None = option(
        None, help="Whether a larger metric is better. Default: no; the metrics are losses."
    )
    early_stopping_patience: int | None = option(
        None,
        at_least(1),
        help="Stop after this many evaluations in a row without improvement. Default: never.",
    )
    early_stopping_threshold: float = option(
        0.0, at_least(0), help="Smallest improvement that counts for early stopping."
    )
    eval_samples: int = option(
        0,
        at_least(0),
        help="Number of examples of each eval set to answer at each evaluation; written to "
        "samples.jsonl in the output folder and to the trackers. 0: off.",
    )
    resume_anyway: bool = option(
        False, help="Resume from a checkpoint that was made with other settings, where possible."
    )
    seed: int = option(
        42,
        at_least(0),
        below(1 << 32),
        help="Random seed for the order of examples, dropout and newly initialized weights.",
    )
    report_to: str = option(
        "none",
        help="Experiment trackers, separated by commas: tensorboard, wandb, trackio; or none.",
    )
    run_name: str | None = option(None, help="Name of the run in the trackers.")
