"""What a preparation counts on the way, as the manifest has it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.prepare.encode.segment_encoder import add_counts
from pipeline.prepare.read.records import RecordCounts
from pipeline.store.chunk_cache import PartInfo


@dataclass(slots=True)
class Tally:
    """What is counted on the way."""

    accepted: int = 0
    rejected: int = 0
    conversations: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    records: RecordCounts = field(default_factory=RecordCounts)
    unknown: int = 0
    answers_with_unknown: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, npt.NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(1, np.int64) for name in ("input_ids", "labels")}
    )

    def add(self, part: PartInfo) -> None:
        """Take in a part's counts."""
        self.reasons.update(part.reasons)
        self.unknown += part.unknown
        self.answers_with_unknown += part.answers_with_unknown
        self.lost.update(part.lost)
        for name, counts in part.lengths.items():
            self.lengths[name] = add_counts(self.lengths[name], np.array(counts, np.int64))

    @property
    def joined(self) -> int:
        """Records that went on with the conversation before them."""
        return self.accepted - self.conversations - self.reasons["duplicate"]

    def all_reasons(self) -> dict[str, int]:
        """Return what was left out, cut or noted, by name."""
        return {name: n for name, n in sorted((self.reasons + self.records.reasons).items()) if n}

    @property
    def pairs(self) -> int:
        """Rows so far."""
        return int(self.lengths["labels"].sum())

    def tokens(self) -> dict[str, Any]:
        """Return the manifest's totals and percentiles."""
        totals = {name: int(n @ np.arange(len(n))) for name, n in self.lengths.items()}
        spread = {name: _percentiles(n) for name, n in self.lengths.items()}
        lost = sorted(self.lost.items(), key=lambda item: (-item[1], item[0]))
        return {
            **totals,
            "unknown": self.unknown,
            "answers_with_unknown": self.answers_with_unknown,
            "lost": [list(item) for item in lost],
            "lengths": spread,
        }


def _percentiles(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    """Return the lengths at some shares of the rows, nearest rank."""
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    reached = counts.cumsum()
    return {
        name: int(np.searchsorted(reached, np.ceil(share * reached[-1])))
        for name, share in ranks.items()
    }
