"""Settings of the model and where it is trained: weights, LoRA, sharding, processes."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config.fields import Bound, Settings, at_least, option, share

_PROCESSES = Bound(
    lambda text: text == "auto" or (text.isascii() and text.isdecimal() and int(text) > 0),
    "give 1 or more, or auto",
    schema={"type": ["integer", "string", "null"], "pattern": "^([1-9][0-9]*|auto)$", "minimum": 1},
)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Settings):
    """Weights, LoRA, sharding, processes."""

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
        help="Number of examples to train on, the first ones. -1: all.",
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
