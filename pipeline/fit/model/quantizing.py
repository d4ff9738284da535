"""``--quantize 4bit``: the frozen layers under an adapter in four bits (QLoRA).

NF4 with its scales quantized again, 4.13 bits a weight in place of 32; a layer is made whole again
for each product. Embeddings, the output matrix with the rows of the new pieces, norms, and the
layers that transformers keeps in float32 (T5's ``wo``) stay as they are.
"""

import logging
from typing import Any, Literal

import torch

from pipeline.errors import ConfigError, require_package

WHOLE = ("lm_head", "shared")
"""What is never quantized: a piece of theirs is trained."""
QUANTIZED = (4 + (8 + 32 / 256) / 64) / 32
"""Of the bytes in float32. A block of 64 weights has a scale of 8 bits, 256 scales one of 32."""


def require_bitsandbytes(flag: str) -> None:
    """Refuse, before anything takes time, what needs a package that is not there.

    Args:
        flag: What needs it.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    quiet_bitsandbytes()
    require_package("bitsandbytes", where=flag, install='"duet-t5[quantize]"')


def quiet_bitsandbytes() -> None:
    """Keep off the terminal what it says, once imported, of kernels that it can do without."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def require_gpu(device: torch.device) -> None:
    """Refuse a device on which it would not be the same run.

    bitsandbytes computes on a CPU, too, but evaluates there with weights that it has packed anew.

    Raises:
        ConfigError: The device is no GPU.
    """
    if device.type in ("cpu", "mps"):
        raise ConfigError(
            "weights of four bits want a GPU",
            where="--quantize",
            got=f"this run is on the device {device.type}",
            do="leave it out: LoRA alone runs anywhere; or start where there is a GPU",
        )


def quantization(kind: Literal["4bit"] | None, *, bf16: bool) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told besides, so that it quantizes; nothing for nothing.

    Each process loads onto its own GPU, where there is one: that is where bitsandbytes quantizes.
    """
    if kind is None:
        return {}
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    config = make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        llm_int8_skip_modules=list(WHOLE),
    )
    return {"quantization_config": config, "dtype": torch.float32}
