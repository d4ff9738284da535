"""A CUDA device: how it is set up, what it can do, and how it says that its memory is full."""

import os
import re
import sys
from collections.abc import Iterator, MutableMapping
from typing import NamedTuple

import torch


def set_allocator(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch's allocator for CUDA grow its segments, unless the user has set it up.

    Micro-batches have many sizes, and segments of fixed sizes would be left in pieces. It has to be
    there before CUDA starts.
    """
    # torch 2.9 took the word CUDA out of the name, and warns of the old one.
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    name = "PYTORCH_ALLOC_CONF" if version >= (2, 9) else "PYTORCH_CUDA_ALLOC_CONF"
    given = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys()
    if not given and sys.platform == "linux":  # elsewhere CUDA has none that grow
        environment[name] = "expandable_segments:True"


def set_attention() -> None:
    """Leave cuDNN's attention out, which torch prefers on Hopper.

    It plans each new shape anew, and shapes here are many; public reports have half a second for
    each, and gradients that are NaN at some lengths. It was not measured here.
    """
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):  # torch 2.5
        torch.backends.cuda.enable_cudnn_sdp(False)


def precision_notes(device: torch.device, *, bf16: bool, tf32: bool | None) -> Iterator[str]:
    """Yield a line where another precision is the one for this device; None: not said."""
    if device.type != "cuda":
        return
    name = torch.cuda.get_device_name(device)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if bf16 and not has_bf16:
        yield (
            f"{name} has no bfloat16 and emulates it, slower than float32: "
            "leave --bf16 out, or take an Ampere or newer"
        )
    if has_bf16 and not bf16 and tf32 is None:
        yield (
            f"{name} multiplies in float32 at about a tenth of its speed: give --bf16 True, "
            "or --tf32 True"
        )


_FULL = re.compile(
    r"out of memory|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED"
    r"|DEVICE_ALLOCATION_FAILED|can't allocate memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device, or on a CPU the machine, had no memory left.

    torch's allocator has a class for it. Libraries that take memory by themselves (cuBLAS, cuDNN,
    NCCL) and CUDA's own calls raise other errors, which are known by their words.
    """
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None


class Peak(NamedTuple):
    """What a maker's data sheet says, in TFLOP/s, without sparsity."""

    bf16: float | None
    """None where it is emulated."""
    tf32: float | None
    float32: float


DATA_SHEETS: tuple[tuple[str, Peak], ...] = (
    ("H200 NVL", Peak(836, 418, 60)),
    ("H200", Peak(989, 494, 67)),
    ("H100 NVL", Peak(836, 418, 60)),
    ("H100 PCIe", Peak(756, 378, 51)),
    ("H100", Peak(989, 494, 67)),  # SXM
    ("A100", Peak(312, 156, 19.5)),
    ("A40", Peak(149.7, 74.8, 37.4)),
    ("A30", Peak(165, 82, 10.3)),
    ("RTX A6000", Peak(154.8, 77.4, 38.7)),
    ("A10", Peak(125, 62.5, 31.2)),
    ("L40S", Peak(362, 183, 91.6)),
    ("L40", Peak(181, 90.5, 90.5)),
    ("L4", Peak(121, 60, 30.3)),
    ("RTX 4090", Peak(165.2, 82.6, 82.6)),
    ("RTX 3090", Peak(71, 35.6, 35.6)),
    ("T4", Peak(None, None, 8.1)),
    ("V100-PCIE", Peak(None, None, 14)),
    ("V100", Peak(None, None, 15.7)),
)
"""By a part of the name that CUDA gives; the first that fits counts."""


def data_sheet_peak(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Return the operations a second of a device by its maker's data sheet; None: not known.

    Matrix products are in ``dtype``; with ``tf32``, those of float32 may be in TF32.

    >>> data_sheet_peak("NVIDIA H100 80GB HBM3", torch.bfloat16)
    989000000000000.0
    """
    for part, peak in DATA_SHEETS:
        if re.search(rf"(?<!\w){re.escape(part)}(?!\w| D\b| Laptop)", name):
            full = peak.tf32 if tf32 and peak.tf32 else peak.float32
            teraflops = peak.bf16 if dtype == torch.bfloat16 else full
            return None if teraflops is None else float(teraflops * 1e12)
    return None
