"""The sharding that ``accelerate launch`` was configured with -> settings of this program.

Accelerate's own FSDP fails on T5's tied matrices and refuses a CPU, and DeepSpeed's engine takes
the optimizer step, with a number of micro-batches of its own, that the loop takes here. Both share
out the same things, so their configs are read, done with ``--fsdp``, and kept from Accelerate.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.logs import note

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
_STRATEGIES = ("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2")
"""Of FSDP's first version; accelerate numbers them from 1."""
_STAGES = {0: "false", 1: "shard_grad_op", 2: "shard_grad_op", 3: "full_shard"}
"""What is shared out at each stage of ZeRO; weights only at the third."""


def with_launchers_sharding(config: FitConfig) -> FitConfig:
    """Return the settings with the sharding that the launcher asks for; ``--fsdp`` comes first.

    Raises:
        ConfigError: DeepSpeed's own config cannot be read.
    """
    if config.fsdp or not (_is_on(_FSDP) or _is_on(_DEEPSPEED)):
        return config
    changes: dict[str, Any]
    if _is_on(_FSDP):
        asked, changes = "FSDP", _of_fsdp(os.environ)
    else:
        stage = _zero_stage()
        asked, changes = f"DeepSpeed ZeRO-{stage}", {"fsdp": _STAGES[stage]}
    note(
        f"accelerate's config asks for {asked}: done as --fsdp "
        f'"{changes["fsdp"]}"; the rest of what it says of it means nothing here'
    )
    return dataclasses.replace(config, **changes)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def _of_fsdp(given: Mapping[str, str]) -> dict[str, Any]:
    if given.get("FSDP_VERSION", "1") == "1":
        word = given.get("FSDP_SHARDING_STRATEGY", "1").lower().replace("none", "1")
        words = [_STRATEGIES[int(word) - 1] if word in tuple("12345") else word]
    else:
        reshard = given.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
        words = ["full_shard" if reshard else "shard_grad_op"]
    if given.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        words.append("offload")
    changes: dict[str, Any] = {"fsdp": " ".join(words)}
    if layers := given.get("FSDP_TRANSFORMER_CLS_TO_WRAP"):
        changes["fsdp_transformer_layer_cls_to_wrap"] = layers
    if given.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        changes["gradient_checkpointing"] = True
    return changes


def _zero_stage() -> int:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    stage: object = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    try:
        if file.lower() != "none":
            values = json.loads(Path(file).read_text(encoding="utf-8"))
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
            do="mend it, or give --fsdp full_shard, which comes first",
        ) from error


@contextlib.contextmanager
def hidden_sharding() -> Iterator[None]:
    """Keep the launcher's sharding from accelerate and transformers, which look at all times."""
    before = {name: os.environ.pop(name) for name in (_FSDP, _DEEPSPEED) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
