"""What must be the same for a run to resume, and what differs."""

from typing import Any

from pipeline.config import FitConfig
from pipeline.config.fields import flag
from pipeline.errors import CheckpointError
from pipeline.fit.data.prepared import PreparedData
from pipeline.fit.model.fingerprint import architecture, base_weights
from pipeline.fit.schedule import RunPlan
from pipeline.fit.training.optim import warmup_steps
from pipeline.store.fingerprint import key_of

_OTHER_RUN = (
    "--model-name-or-path (config)",
    "--model-name-or-path (weights)",  # of an adapter's base
    "vocabulary",
    "rows to train on",
)
"""What a run cannot be resumed with another value of, by its name in the identity."""
_SET_BY = {
    "rows per step": "--train-batch-size",
    "steps in all": "--max-steps",
    "warmup steps": "--warmup-steps",
}
"""What sets a value directly that follows from several flags, or from the number of processes."""
_SHOWN = {
    "rows per step": "global batch size",
    "rows to train on": "training examples",
    "steps in all": "total steps",
}
"""What a value is called in messages, where its name in checkpoints is an older one."""
_SETTINGS = (
    "seed",
    "bf16",
    "group_by_length",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)
_SETTINGS_IF_GIVEN = ("lr_scheduler_kwargs", "label_smoothing_factor", "dropout")
"""Checkpoints of runs without them do not name them."""
_LORA_SETTINGS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "quantize")


def run_identity(config: FitConfig, plan: RunPlan, data: PreparedData) -> dict[str, Any]:
    """Return what must be the same for a run to be resumed, by name.

    Raises:
        ModelError: The model's files cannot be read.
    """
    name, cache_dir = config.model_name_or_path, config.cache_dir
    settings = (*_SETTINGS, *(_LORA_SETTINGS if config.lora_r else ()))
    settings += tuple(
        name for name in _SETTINGS_IF_GIVEN if getattr(config, name) != getattr(FitConfig, name)
    )
    identity = {
        "--model-name-or-path (config)": architecture(name, cache_dir),
        "vocabulary": key_of(sorted(data.tokenizer.backend.get_vocab().items())),
        "--from-scratch": config.from_scratch,
        "--data-path (fingerprint)": data.train.fingerprint,
        "rows per step": plan.global_batch_size,
        "rows to train on": data.train.rows_per_epoch,
        "steps in all": plan.total_steps,
        "warmup steps": warmup_steps(config.schedule, plan.total_steps),
        **{flag(name): getattr(config, name) for name in settings},
    }
    if config.lora_r:
        identity["--model-name-or-path (weights)"] = base_weights(name, cache_dir)
    return identity


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, each with its value before and now."""
    return {
        name: (before.get(name), now.get(name))
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    }


def check_identity(
    checkpoint: str, different: dict[str, tuple[Any, Any]], *, step: int, anyway: bool
) -> str:
    """Return the settings that differ after so many steps, in words.

    Raises:
        CheckpointError: One differs; it names the first, with both values. With ``anyway``, only
            where a run cannot be resumed with another value.
    """
    barred = [name for name in different if not _can_change(name, *different[name], step=step)]
    for name in barred or ([] if anyway else different):
        before, value = different[name]
        old = f"{_SET_BY[name]} {before}" if name in _SET_BY else "the value it was made with"
        way = "" if barred else "--resume-anyway to resume with this value, "
        raise CheckpointError(
            "a run cannot be resumed with other settings",
            where=_SHOWN.get(name, name),
            got=f"{value}, but {checkpoint} was made with {before}",
            do=f"give {old}, {way}or another --output-dir",
        )
    return ", ".join(
        f"{_SHOWN.get(name, name)} {now} (was {old})" for name, (old, now) in different.items()
    )


def _can_change(name: str, before: Any, now: Any, *, step: int) -> bool:
    """Return whether resuming with another value makes sense."""
    if name == "--optim":  # the two of AdamW in full keep the same state
        return {before, now} <= {"adamw_torch", "adamw_torch_fused"}
    if name == "steps in all":
        return bool(now >= step)
    return name not in _OTHER_RUN and not name.startswith("--lora-")
