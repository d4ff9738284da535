"""What a run costs: how fast it is, what of that is useful, what it waits for, what it takes.

All of it is time and memory, so it differs from run to run; loss, rate and gradient norm do not.
"""

import functools
import sys
import time
from collections.abc import Callable

import torch

from pipeline.fit.device import data_sheet_peak

METRICS = (
    "target_tokens_per_second",
    "mfu",
    "padding_share",
    "data_wait_share",
    "peak_memory_gib",
    "seconds_left",
)
"""The names in the log; ``mfu`` is of the peak that was measured."""
OF_DATA_SHEET = "mfu_datasheet"
"""One more: ``mfu`` of the maker's figure, on a device where that is known."""


class ThroughputMeter:
    """Measures the steps between two log entries; what happens between steps does not count.

    Args:
        device: This process's; the others have the like.
        processes: How many share a step.
        total_steps: Of the run.
        first_step: Steps that were done before this session.
        passes: Forward passes that a step takes as much as: see ``flops.training_passes``.
        peak: Operations a second that ``mfu`` is of.
        data_sheet: Those of the maker's figure; None: not known.
        clock: Returns seconds.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        processes: int,
        total_steps: int,
        first_step: int,
        passes: int,
        peak: float,
        data_sheet: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock, self._device = clock, device
        self._processes, self._passes = processes, passes
        self._total, self._first = total_steps, first_step
        self._peak, self._data_sheet = peak, data_sheet
        self._waited_before = 0.0
        self._reset()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # what came before is no part of the steps
        self._began = self._since = clock()

    def resume(self) -> None:
        """Start the clock again after what is no step: an evaluation, a checkpoint."""
        self._since = self._clock()

    def step(
        self, *, target_tokens: int, useful_flops: float, padded_flops: float, waited: float
    ) -> None:
        """Take in a step that is done, of all processes together.

        Operations are those of its forward pass, without padding and with it; ``waited`` is the
        seconds that this process has waited for data in this session.
        """
        self._seconds += self._clock() - self._since
        self._tokens += target_tokens
        self._useful += useful_flops
        self._padded += padded_flops
        self._waited += waited - self._waited_before
        self._waited_before = waited
        self.resume()

    def read(self, step: int) -> dict[str, float]:
        """Return the values of ``METRICS`` for the steps since the last reading; ``step``: done."""
        seconds = max(self._seconds, 1e-9)
        elapsed = self._clock() - self._began
        useful = self._passes * self._useful / seconds / self._processes
        of_data_sheet = {OF_DATA_SHEET: useful / self._data_sheet} if self._data_sheet else {}
        values = {
            "target_tokens_per_second": self._tokens / seconds,
            "mfu": useful / self._peak,
            **of_data_sheet,
            "padding_share": 1 - self._useful / max(self._padded, 1.0),
            "data_wait_share": self._waited / seconds,
            "peak_memory_gib": peak_memory(self._device) / 2**30,
            "seconds_left": elapsed / max(step - self._first, 1) * (self._total - step),
        }
        self._reset()
        return values

    def _reset(self) -> None:
        self._seconds = self._waited = self._useful = self._padded = 0.0
        self._tokens = 0


def data_sheet_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations a second by the maker's data sheet; None: not known."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return data_sheet_peak(torch.cuda.get_device_name(device), dtype, tf32=tf32)


@functools.cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of the device's best of some large matrix products.

    A third of a second, and at least three products; the first is not counted. It is what "of
    peak" is of: the maker's figure is of another clock and other shapes.
    """
    size = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # the run's own must not move
    left, right = (
        torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    best, began = float("inf"), time.perf_counter()
    for i in range(100):
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # a GPU is done when a value is here
        now = time.perf_counter()
        if i:
            best = min(best, now - start)
        if i > 2 and now - began > 1 / 3:
            break
    return float(2 * size**3 / best)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
