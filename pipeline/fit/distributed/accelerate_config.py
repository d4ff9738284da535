"""What ``accelerate launch`` was configured with -> settings of this program.

Accelerate's own FSDP fails on T5's tied matrices and refuses a CPU, and DeepSpeed's engine takes
the optimizer step, with a number of micro-batches of its own, that the loop takes here. Both shard
the same things, so their configs are read, done with ``--fsdp``, and kept from Accelerate.

Its FSDP plugin reads FSDP's part. Its DeepSpeed plugin does not read DeepSpeed's: it wants more of
a config than the stage, and writes into the environment.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import FitConfig
from pipeline.console.logs import note
from pipeline.errors import ConfigError
from pipeline.json_object import read_json_object

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_STAGES = {0: "false", 1: "shard_grad_op", 2: "shard_grad_op", 3: "full_shard"}
"""What is sharded at each stage of ZeRO; weights only at the third."""


def with_launcher_settings(config: FitConfig) -> FitConfig:
    """Return the settings with the precision and the sharding that the launcher asks for.

    What this program's own flags turn on comes first.

    Raises:
        ConfigError: The launcher asks for what T5 cannot do, or its config cannot be read.
    """
    return _with_sharding(_with_precision(config))


def _with_precision(config: FitConfig) -> FitConfig:
    asked = os.environ.get(_PRECISION, "no").lower()
    if asked in ("no", "") or config.bf16:
        return config
    if asked != "bf16":
        raise ConfigError(
            "T5 overflows in float16 and its loss becomes NaN"
            if asked == "fp16"
            else "an unsupported precision",
            where="mixed_precision of accelerate's config",
            got=asked,
            do="set it to bf16, or to no",
        )
    note("accelerate's config sets mixed_precision bf16: using --bf16 True")
    return dataclasses.replace(config, bf16=True)


def _with_sharding(config: FitConfig) -> FitConfig:
    if config.fsdp or not (_is_on(_FSDP) or _is_on(_DEEPSPEED)):
        return config
    changes: dict[str, Any]
    if _is_on(_FSDP):
        asked, changes = "FSDP", _fsdp_settings()
    else:
        stage = _zero_stage()
        asked, changes = f"DeepSpeed ZeRO-{stage}", {"fsdp": _STAGES[stage]}
    note(
        f"accelerate's config sets {asked}: using --fsdp "
        f'"{changes["fsdp"]}"; its other settings are ignored'
    )
    return dataclasses.replace(config, **changes)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def _fsdp_settings() -> dict[str, Any]:
    from accelerate.utils import FullyShardedDataParallelPlugin

    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            "accelerate's FSDP config cannot be read",
            where="accelerate launch",
            got=repr(error),
            do="fix it, or give --fsdp full_shard, which comes first",
        ) from error
    if plugin.fsdp_version == 1:
        words = [plugin.sharding_strategy.name.lower().lstrip("_")]
    else:
        words = ["full_shard" if plugin.reshard_after_forward else "shard_grad_op"]
    if _is_on("FSDP_OFFLOAD_PARAMS"):  # the plugin's classes for it differ between versions
        words.append("offload")
    changes: dict[str, Any] = {"fsdp": " ".join(words)}
    if plugin.transformer_cls_names_to_wrap:
        changes["fsdp_transformer_layer_cls_to_wrap"] = ",".join(
            plugin.transformer_cls_names_to_wrap
        )
    if plugin.activation_checkpointing:
        changes["gradient_checkpointing"] = True
    return changes


def _zero_stage() -> int:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    stage: object = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    try:
        if file.lower() != "none":
            values = read_json_object(Path(file))
            stage = values.get("zero_optimization", {}).get("stage", 0)
        number = int(str(stage))
        if number not in _STAGES:
            raise ValueError(f"ZeRO stage {number}")
        return number
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            "DeepSpeed's config cannot be read",
            where=file,
            got=error,
            do="fix it, or give --fsdp full_shard, which comes first",
        ) from error


@contextlib.contextmanager
def hidden_sharding() -> Iterator[None]:
    """Keep the launcher's sharding from accelerate and transformers, which look at all times."""
    before = {name: os.environ.pop(name) for name in (_FSDP, _DEEPSPEED) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
