"""Views of the settings of a run: what a builder takes, in place of all of them.

``FitOptions`` makes them from its fields, so that each setting is still written once.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import ConfigError

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor", "muon"]
Strategy = Literal["no", "steps", "epoch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """A view of the settings: what an adapter is made by."""

    r: int
    """Rank of its matrices."""
    alpha: int = 16
    dropout: float = 0.05
    target_modules: tuple[str, ...] | None = None
    """Last names of the layers; None: all of attention and feed-forward."""
    seed: int = 42
    """Of its start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """A view of the settings: what a model is built from."""

    name: str
    """A folder or a hub name."""
    cache_dir: str | None = None
    from_scratch: bool = False
    seed: int = 42
    """Of fresh weights."""
    bf16: bool = False
    quantize: Literal["4bit"] | None = None
    gradient_checkpointing: bool = False
    dropout: float | None = None
    """None: that of the model's config."""
    lora: LoraSettings | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """A view of the settings: how many steps there are, of how many rows, and what is due when."""

    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    train_batch_size: int | None = None
    logging_steps: float = 500
    eval_strategy: Strategy | None = None
    eval_steps: float | None = None
    save_strategy: Strategy = "steps"
    save_steps: float = 500
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = None
    eval_samples: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """A view of the settings: what an optimizer is made with."""

    optim: Optimizer = "adamw_torch"
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """A view of the settings: the learning rate at each step, over its peak."""

    lr_scheduler_type: Scheduler = "linear"
    warmup_ratio: float = 0.0
    warmup_steps: float = 0
    scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    """What ``--lr-scheduler-kwargs`` says."""


_WORDS = ("full_shard", "shard_grad_op", "auto_wrap")
"""What ``--fsdp`` takes."""
_NOT_HERE = ("offload", "hybrid_shard", "hybrid_shard_zero2", "no_shard")
_OFF = ("", "false", "none")
_ON = ("true", "1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """A view of the settings: how a model is sharded over the processes of a run."""

    layers: tuple[str, ...]
    """Classes of the layers that are a group each; none: those that transformers names."""
    reshard: bool
    """Whether a layer is let go of after its forward pass and gathered again for the backward."""

    @classmethod
    def parse(cls, text: str, layers: str) -> "Sharding | None":
        """Return what ``--fsdp`` and ``--fsdp-transformer-layer-cls-to-wrap`` ask for.

        Raises:
            ConfigError: A word is not known, or not supported.

        >>> Sharding.parse("full_shard auto_wrap", "T5Block")
        Sharding(layers=('T5Block',), reshard=True)
        >>> Sharding.parse("False", "T5Block")
        """
        words = text.lower().replace(",", " ").split()
        if all(word in _OFF for word in words):
            return None
        words = ["full_shard" if word in _ON else word for word in words]
        for word in words:
            if word not in _WORDS:
                raise ConfigError(
                    "not supported" if word in _NOT_HERE else "not a way to shard",
                    where="--fsdp",
                    got=word,
                    do='give "full_shard" (least memory) or "shard_grad_op" (less communication), '
                    "or leave it out: each process then holds the whole model",
                )
        names = (name.strip() for name in layers.split(","))
        return cls(layers=tuple(filter(None, names)), reshard="shard_grad_op" not in words)
