"""Settings of training: steps and batches, learning rate and optimizer, precision."""

from dataclasses import dataclass
from typing import get_args

from pipeline.config.fields import Bound, Settings, above, at_least, option, share
from pipeline.config.views import Optimizer, Scheduler

_NOT_FP16 = Bound(
    lambda fp16: not fp16,
    "use --bf16 True, or neither",
    "T5 overflows in float16 and its loss becomes NaN",
)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Settings):
    """Steps and batches, learning rate and optimizer, precision."""

    num_train_epochs: float = option(
        3.0, above(0), help="Number of training epochs, above 0; 0.5 is half of one."
    )
    max_steps: int = option(
        -1,
        at_least(1, off=-1, do="give 1 or more, or -1 to go by --num-train-epochs"),
        help="Number of optimizer steps, in place of --num-train-epochs. -1: off.",
    )
    per_device_train_batch_size: int = option(
        8,
        at_least(1),
        help="Micro-batch size per device, in examples as long as the longest of the data; "
        "of shorter ones a micro-batch holds more.",
    )
    per_device_eval_batch_size: int = option(
        8, at_least(1), help="Evaluation batch size per device, counted in the same way."
    )
    gradient_accumulation_steps: int = option(
        1, at_least(1), help="Gradient accumulation steps; a factor of the global batch size."
    )
    train_batch_size: int | None = option(
        None,
        at_least(1),
        help="Global batch size: examples per optimizer step, over all devices. Gradient "
        "accumulation follows from it. "
        "Default: batch size per device x processes x accumulation steps.",
    )
    auto_batch_size: bool = option(
        False,
        help="Find the largest micro-batches that fit in GPU memory; the global batch size "
        "stays the same.",
    )
    group_by_length: bool = option(
        True,
        help="Group examples of similar length into the same step: less padding; their order "
        "changes.",
    )
    learning_rate: float = option(5e-5, above(0), help="Peak learning rate, above 0.")
    lr_scheduler_type: Scheduler = option(
        "linear", help="Learning-rate schedule: " + ", ".join(get_args(Scheduler)) + "."
    )
    lr_scheduler_kwargs: str | None = option(
        None,
        help="Extra arguments of the schedule, as JSON or as NAME=VALUE separated by "
        "commas: min_lr_rate=0.1 for cosine_with_min_lr, num_decay_steps=100 for "
        "warmup_stable_decay.",
    )
    warmup_ratio: float = option(
        0.0, share(), help="Fraction of training steps used for linear warmup, 0 to 1."
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
        help="Label smoothing of the training loss, 0 to below 1. 0: off. Evaluation losses "
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
    adam_epsilon: float = option(1e-8, above(0), help="Epsilon of AdamW, above 0.")
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
