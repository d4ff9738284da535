"""What padding costs under some batch plans, in operations, without a model or a device."""

from typing import NamedTuple

import numpy as np

from pipeline.fit.data.micro_batches import MicroBatcher
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.estimate.step_costs import cost_of_steps
from pipeline.report.dataset.rows import IntArray, Lengths
from pipeline.report.dataset.windows import Flops

BATCH_ROWS = 8
"""Rows of a stock batch, and ``--per-device-train-batch-size``: the default."""
GLOBAL_BATCH_ROWS = (8, 128)
MOST_ROWS = 4_096
"""Rows whose steps are cut: enough for the first three digits."""
_SEED = 42


class PlanCost(NamedTuple):
    """What a batch plan costs."""

    plan: str
    ratio: float
    """Operations with padding over those without: 1 is none."""

    @property
    def share(self) -> float:
        """The share of all operations that padding takes."""
        return 1 - 1 / self.ratio


def plan_costs(lengths: Lengths, flops: Flops) -> list[PlanCost]:
    """Return the costs of stock orders in batches of 8, then of ``fit``'s; at least one row."""
    costs = [
        PlanCost(name, stock_ratio(lengths, order, BATCH_ROWS, flops))
        for name, order in stock_orders(lengths.encoder, BATCH_ROWS, _SEED).items()
    ]
    batcher = MicroBatcher(lengths.encoder, lengths.decoder, flops=flops, max_rows=BATCH_ROWS)
    for group in (False, True):
        for rows in GLOBAL_BATCH_ROWS:
            if rows <= len(lengths) or rows == GLOBAL_BATCH_ROWS[0]:
                name = f"fit, global batch {rows}, {'grouped' if group else 'shuffled'}"
                costs.append(PlanCost(name, _ratio(lengths, batcher, rows, group)))
    return costs


def _ratio(lengths: Lengths, batcher: MicroBatcher, global_batch_size: int, group: bool) -> float:
    sampler = BatchSampler(
        lengths.encoder,
        lengths.decoder,
        global_batch_size=global_batch_size,
        seed=_SEED,
        group_by_length=group,
    )
    there = sampler.steps_per_epoch
    steps = np.linspace(0, there - 1, max(min(there, MOST_ROWS // global_batch_size), 1)).astype(
        int
    )
    return cost_of_steps(map(sampler.rows_of, steps.tolist()), batcher, 1).padding


def stock_orders(encoder: IntArray, batch: int, seed: int) -> dict[str, IntArray]:
    """Return the orders of stock trainers: as they are shuffled, and sorted in 50 batches."""
    order = np.random.default_rng(seed).permutation(len(encoder))
    window = np.arange(len(order)) // (50 * batch)
    grouped = order[np.lexsort((encoder[order], window))]
    return {"stock, shuffled": order, "stock, group_by_length": grouped}


def stock_ratio(lengths: Lengths, order: IntArray, batch: int, flops: Flops) -> float:
    """Return padded over useful operations of consecutive batches of an order."""
    starts = np.arange(0, len(order), batch)
    longest = (np.maximum.reduceat(s[order], starts) for s in (lengths.encoder, lengths.decoder))
    rows = np.diff(np.append(starts, len(order)))
    padded = (rows * flops(*longest)).sum()
    return float(padded / flops(lengths.encoder, lengths.decoder).sum())
