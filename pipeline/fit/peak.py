"""What a device can do at best: its matrix products, measured.

A share of this peak says how well a run uses the device, whatever the data sheet promises.
"""

import time

import torch

_SIZES = {"cpu": 1024}
_SIZE = 8192
_SECONDS = 0.5


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of large square matrix products, the best of half a second.

    Args:
        device: Where.
        dtype: Of the matrices.
    """
    size = _SIZES.get(device.type, _SIZE)
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = one @ other  # the first one loads libraries
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < _SECONDS or not best:
        _finish(device)
        start = time.perf_counter()
        torch.matmul(one, other, out=result)
        _finish(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
