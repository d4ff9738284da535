"""Gradients under DistributedDataParallel stay in its buckets from step to step."""

import torch
from torch.nn.parallel import DistributedDataParallel


def keeps_gradients(model: torch.nn.Module) -> bool:
    """Return whether gradients are to be made zero in place, and not taken away.

    DistributedDataParallel's are views of its buckets. Taken away, they are made anew beside the
    buckets by a step's first micro-batch, and are in memory twice until its last.

    Args:
        model: As the processes train it, wrapped or not.
    """
    return isinstance(model, DistributedDataParallel)
