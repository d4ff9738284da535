"""Settings of the second stage: how to train on given rows."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.fields import (
    Bound,
    Settings,
    above,
    at_least,
    below,
    option,
    parse_kwargs,
    require,
    share,
    shared_values,
)
from pipeline.config.views import (
    LoraSettings,
    Optimizer,
    OptimizerSettings,
    Scheduler,
    ScheduleSettings,
    Sharding,
    StepSettings,
    Strategy,
)

TRACKERS = ("tensorboard", "wandb", "trackio")
EVAL_METRICS = ("loss", "bits_per_byte")
_NOT_FP16 = Bound(
    lambda fp16: not fp16,
    "use --bf16 True, or neither",
    "T5 overflows in float16 and its loss becomes NaN",
)
_PROCESSES = Bound(
    lambda text: text == "auto" or (text.isascii() and text.isdecimal() and int(text) > 0),
    "give 1 or more, or auto",
    schema={"type": ["integer", "string", "null"], "pattern": "^([1-9][0-9]*|auto)$", "minimum": 1},
)


@dataclass(frozen=True, kw_only=True)
class FitOptions(Settings):
    """What decides a training run on given rows. Defaults are the Hugging Face trainer's."""

    num_train_epochs: float = option(3.0, above(0), help="Training epochs; may be a fraction.")
    max_steps: int = option(
        -1,
        at_least(1, off=-1, do="give 1 or more, or -1 to go by --num-train-epochs"),
        help="Optimizer steps of the run; overrides --num-train-epochs. -1: off.",
    )
    per_device_train_batch_size: int = option(
        8,
        at_least(1),
        help="Micro-batch size per device, in maximum-length examples; more when they are shorter.",
    )
    per_device_eval_batch_size: int = option(
        8, at_least(1), help="Evaluation batch size per device, in maximum-length examples."
    )
    gradient_accumulation_steps: int = option(
        1, at_least(1), help="Gradient accumulation steps: multiplies the global batch size."
    )
    train_batch_size: int | None = option(
        None,
        at_least(1),
        help="Global batch size, in examples; gradient accumulation follows from it. "
        "Default: batch size per device x processes x accumulation steps.",
    )
    auto_batch_size: bool = option(
        False,
        help="Find the largest micro-batches that fit in GPU memory; the global batch size stays.",
    )
    group_by_length: bool = option(
        True,
        help="Group examples of similar length into the same step: less padding, another order.",
    )
    learning_rate: float = option(5e-5, above(0), help="Peak learning rate, above 0.")
    lr_scheduler_type: Scheduler = option("linear", help="Learning-rate schedule.")
    lr_scheduler_kwargs: str | None = option(
        None,
        help="Extra arguments of the schedule, as JSON or as NAME=VALUE separated by "
        "commas: min_lr_rate=0.1 for cosine_with_min_lr, num_decay_steps=100 for "
        "warmup_stable_decay.",
    )
    warmup_ratio: float = option(
        0.0, share(), help="Fraction of training steps used for linear warmup."
    )
    warmup_steps: float = option(
        0,
        at_least(0),
        help="Training steps used for linear warmup; below 1: a fraction of all steps. "
        "Overrides --warmup-ratio.",
    )
    label_smoothing_factor: float = option(
        0.0,
        share(one=False),
        help="Label smoothing of the training loss, 0 to below 1; 0: off. Evaluation losses "
        "are not smoothed.",
    )
    dropout: float | None = option(
        None,
        share(one=False),
        help="Dropout rate of the model, 0 to below 1. Default: from the model's config.",
    )
    weight_decay: float = option(
        0.0,
        at_least(0),
        help="Weight decay, 0 or more; not applied to biases and layer norms.",
    )
    max_grad_norm: float = option(
        1.0, at_least(0), help="Maximum gradient norm for clipping. 0: off."
    )
    optim: Optimizer = option(
        "adamw_torch",
        help="Optimizer: adamw_torch, adamw_torch_fused, adafactor, adamw_8bit (8-bit states, "
        "bitsandbytes), or muon (for the matrices of the layers; AdamW for the rest).",
    )
    adam_beta1: float = option(0.9, share(), help="Beta1 of AdamW, 0 to 1.")
    adam_beta2: float = option(0.999, share(), help="Beta2 of AdamW, 0 to 1.")
    adam_epsilon: float = option(1e-8, above(0), help="Epsilon of AdamW.")
    bf16: bool = option(
        False, help="Mixed precision: compute in bfloat16, keep weights in float32."
    )
    fp16: bool = option(False, _NOT_FP16, help="Refused: T5 overflows in float16. Use --bf16.")
    tf32: bool | None = option(
        None,
        help="Use TF32 for float32 matrix products, on GPUs that support it. Default: "
        "PyTorch's setting.",
    )
    gradient_checkpointing: bool = option(
        False,
        help="Recompute activations in the backward pass: less memory, more compute.",
    )
    torch_compile: bool = option(False, help="Compile the model with torch.compile.")
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
    from_scratch: bool = option(
        False, help="Initialize the weights at random from the model's config."
    )
    lora_r: int = option(
        0,
        at_least(0),
        help="Rank of LoRA adapters; the embeddings of new tokens are trained too. 0: off, "
        "train all weights.",
    )
    lora_alpha: int = option(
        16, at_least(1), help="LoRA scaling factor: updates are scaled by alpha / rank."
    )
    lora_dropout: float = option(
        0.05, share(one=False), help="Dropout rate of LoRA adapters, 0 to below 1."
    )
    lora_target_modules: str | None = option(
        None,
        help="Modules to apply LoRA to, separated by commas. Default: all attention and "
        "feed-forward layers (T5: q,k,v,o,wi,wi_0,wi_1,wo).",
    )
    quantize: Literal["4bit"] | None = option(
        None,
        help="Quantize the frozen base model under LoRA (QLoRA): 4bit, which is bitsandbytes' NF4.",
    )
    num_data: int = option(
        -1,
        at_least(1, off=-1, do="give 1 or more, or -1 for all"),
        help="Train on the first N examples. -1: all.",
    )
    cache_dir: str | None = option(
        None, help="Cache folder for models from the hub. Default: the Hugging Face cache."
    )
    fsdp: str = option(
        "",
        help="Fully Sharded Data Parallel: full_shard shards parameters, gradients and optimizer "
        "states; shard_grad_op keeps parameters gathered between forward and backward pass.",
    )
    fsdp_transformer_layer_cls_to_wrap: str = option(
        "",
        help="Transformer layer classes to wrap with FSDP, separated by commas. Default: T5Block, "
        "or the model's own.",
    )
    num_processes: str = option(
        "1",
        _PROCESSES,
        help="Number of processes to start on this machine with torchrun, or auto: one per "
        "GPU. 1: start none.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            not (self.lora_r and self.from_scratch),
            "lora_r",
            self.lora_r,
            "give 0 with --from-scratch: an adapter wants a model that is saved somewhere",
        )
        require(
            self.quantize is None or self.lora_r > 0,
            "quantize",
            self.quantize,
            "give --lora-r 16 too, or leave it out: weights of four bits cannot be trained",
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
