"""A loss, a gradient or a weight that is no finite number, and the rows it comes from."""

from collections.abc import Sequence

import torch

from pipeline.errors import ModelError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.sampler import IntArray

_NAMED = 16
"""Rows that a message names."""


def diverged(step: int, got: object) -> ModelError:
    """Return the error for a run that cannot continue."""
    return ModelError(
        "training diverged",
        where=f"step {step}",
        got=got,
        do="start again with a lower --learning-rate or with --warmup-steps",
    )


def rows_without_loss(
    parts: Sequence[IntArray], losses: Sequence[torch.Tensor], dataset: SupervisedDataset
) -> str:
    """Return words for the rows of the micro-batches without a finite loss; empty for none.

    Every process must call this, with its micro-batches and their losses, and gets the same words.
    """
    from accelerate.utils import gather_object

    found = [
        int(row)
        for part, loss in zip(parts, losses, strict=True)
        if not loss.isfinite()
        for row in part
    ]
    rows = sorted(gather_object(found))
    if not rows:
        return ""
    ids = dataset.conversation_ids(rows[:_NAMED])
    named = [f"{row} ({name})" for row, name in zip(rows, ids, strict=False)]
    more = [f"{len(rows) - _NAMED:,} more"] if len(rows) > _NAMED else []
    return f" in row{'s' if len(rows) > 1 else ''} " + ", ".join(named + more)
