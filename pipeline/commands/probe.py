"""Imports packages, one after another, in a process of its own, which a broken one may end.

    python -m pipeline.commands.probe torch pyarrow

Each gives a line of JSON: its name, what went wrong, and, of torch, the devices.
"""

import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def main() -> None:
    """Import what the command line names."""
    # What a package prints when it is imported is not for the one who reads the lines.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        for name in sys.argv[1:]:
            print(json.dumps(try_import(name)), file=out, flush=True)


def try_import(name: str) -> dict[str, Any]:
    """Return what came of importing a package: ``error`` is None where it went well."""
    found: dict[str, Any] = {"name": name, "error": None}
    try:
        module = importlib.import_module(name)
        if name == "torch":
            found["devices"] = list(devices(module))
    except BaseException as error:  # whatever it raises is the finding
        first = str(error).strip().partition("\n")[0]
        found["error"] = f"{type(error).__name__}: {first}"
    return found


def devices(torch: Any) -> Any:
    """Yield what there is to compute on, and what it can do."""
    yield {"device": "cpu", "name": platform.processor() or platform.machine(), **_cpu()} | {
        "attention": _attention(torch, "cpu")
    }
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        free, total = torch.cuda.mem_get_info(index)
        yield {
            "device": device,
            "name": torch.cuda.get_device_name(index),
            "memory": total,
            "free": free,
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "attention": _attention(torch, device),
        }
    if torch.backends.mps.is_available():
        yield {"device": "mps", "name": "Apple GPU", "attention": _attention(torch, "mps")}


def _cpu() -> dict[str, Any]:
    page = os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/cpuinfo")
    words = set(info.read_text(encoding="utf-8").split()) if info.exists() else set()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": usable,
        "memory": page * os.sysconf("SC_PHYS_PAGES"),
        "bf16": bool({"avx512_bf16", "amx_bf16", "bf16"} & words),
        "features": [name for name in _CPU_FEATURES if name in words],
    }


def _attention(torch: Any, device: str) -> list[str]:
    """Return the kernels of torch's attention that take T5's position bias on a device."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape = (1, 2, 16, 64)  # batch, heads, tokens, head size
    dtype = torch.float32 if device == "mps" else torch.bfloat16
    query, key, value = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(3))
    bias = torch.zeros((1, 2, 16, 16), dtype=dtype, device=device)
    found = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        except Exception:  # it is not for this device, this bias or this build
            continue
        found.append(name.removesuffix("_ATTENTION").lower())
    return found


if __name__ == "__main__":
    main()
