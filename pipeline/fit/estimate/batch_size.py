"""``--auto-batch-size``: how many of the longest rows fit on the device at once.

Trained on are made-up rows, before the first step, with room kept for what the optimizer will
need. The rows of a step stay what the settings say: what is found is the budget of a micro-batch.
"""

from collections.abc import Callable
from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.fit.data.micro_batches import Shape

SPARE = 0.05
"""Share of the device's memory that is left alone: not every free piece can be used."""


def largest_that_fits(fits: Callable[[int], bool], *, first: int, limit: int) -> int:
    """Return the largest size that fits, at most ``limit``; 0 where not even 1 does.

    Args:
        fits: Tells whether a size fits; what is smaller than one that fits does, too.
        first: What to try first; then it is doubled or halved, and closed in on.
        limit: The largest size of interest; 1 or more.

    >>> tried = []
    >>> largest_that_fits(lambda size: tried.append(size) or size <= 11, first=4, limit=64)
    11
    >>> tried
    [4, 8, 16, 12, 10, 11]
    """
    fitting, failing, size = 0, limit + 1, min(first, limit)
    while failing - fitting > 1:
        if fits(size):
            fitting = size
        else:
            failing = size
        size = (fitting + failing) // 2 if failing <= limit else min(2 * fitting, limit)
    return fitting


def find_batch_size(
    fits: Callable[[Shape], bool], accelerator: Any, *, longest: Shape, limit: int
) -> int:
    """Return how many of the longest rows fit on the device, on every process's.

    Args:
        fits: Tells whether this process can train on a batch of a shape; without the others.
        accelerator: accelerate's Accelerator.
        longest: The lengths of the longest rows; of its rows, what to try first.
        limit: The most rows of interest.

    Raises:
        ConfigError: Not even one fits.
    """
    found = largest_that_fits(
        lambda rows: fits(longest._replace(rows=rows)), first=longest.rows, limit=limit
    )
    each = accelerator.gather(torch.tensor([found], device=accelerator.device))
    found = int(each.min())
    if not found:
        raise ConfigError(
            "the device is out of memory with a single row",
            where="--auto-batch-size",
            got=f"{longest.encoder} encoder and {longest.decoder} decoder tokens",
            do="use --gradient-checkpointing True, --optim adafactor, or prepare with a smaller "
            "--model-max-length",
        )
    return found


def spare(device: torch.device) -> int:
    """Return the bytes that are left alone."""
    if device.type != "cuda":
        return 0
    return round(SPARE * torch.cuda.get_device_properties(device).total_memory)
