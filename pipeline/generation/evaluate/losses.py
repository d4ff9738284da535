"""The loss of each pair by itself: their sum is what ``fit`` evaluates."""

from typing import Any

import numpy as np
import torch

from pipeline.fit.data.loader import micro_batcher_for, to_device
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.generation.evaluate.metrics import Columns, Metric, loss_metrics
from pipeline.generation.evaluate.pairs import Pairs

_ROWS = 8
"""Of the longest rows, in a batch."""


@torch.inference_mode()
def losses_of(model: Any, pairs: Pairs) -> list[Metric]:
    """Return the loss and bits per byte of a model in float32."""
    dataset, device = pairs.dataset, model.device
    micro_batcher = micro_batcher_for(dataset, model.config, _ROWS, device)
    pad_id = model.config.pad_token_id or 0
    summed, place = SummedTokenLoss(model).eval(), {row: i for i, row in enumerate(pairs.rows)}
    losses: Columns = np.zeros(len(pairs.rows))
    for rows in micro_batcher.split(pairs.rows):
        batch = to_device(dataset.batch(rows, pad_id, multiple=micro_batcher.multiple), device)
        for row, loss in zip(rows, summed.row_losses(**batch).tolist(), strict=True):
            losses[place[row]] = loss
    tokens = dataset.lengths[1][pairs.rows].astype(float)
    num_bytes = np.array([len(text.encode("utf-8")) for text in pairs.references], float)
    return loss_metrics(losses, tokens, num_bytes)
