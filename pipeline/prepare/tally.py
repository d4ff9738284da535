"""What a preparation counts on the way, as the manifest has it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.prepare.workers import EncodedBatch


@dataclass(slots=True)
class Tally:
    """What is counted on the way."""

    accepted: int = 0
    rejected: int = 0
    conversations: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    lengths: dict[str, npt.NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(1, np.int64) for name in ("input_ids", "labels")}
    )

    def add(self, batch: EncodedBatch) -> None:
        """Take in a batch's counts."""
        self.reasons.update(batch.reasons)
        self.unknown += batch.unknown
        for name, counts in batch.lengths.items():
            longer, shorter = sorted((self.lengths[name], counts), key=len, reverse=True)
            longer = longer.astype(np.int64)
            longer[: len(shorter)] += shorter
            self.lengths[name] = longer

    @property
    def pairs(self) -> int:
        """Rows so far."""
        return int(self.lengths["labels"].sum())

    def tokens(self) -> dict[str, Any]:
        """Return the manifest's totals and percentiles."""
        totals = {name: int(n @ np.arange(len(n))) for name, n in self.lengths.items()}
        spread = {name: _percentiles(n) for name, n in self.lengths.items()}
        return {**totals, "unknown": self.unknown, "lengths": spread}


def _percentiles(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    """Return the lengths at some shares of the rows, nearest rank."""
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    reached = counts.cumsum()
    return {
        name: int(np.searchsorted(reached, np.ceil(share * reached[-1])))
        for name, share in ranks.items()
    }
