"""What a preparation counts on the way, of one segment or of all, as the manifest has it."""

import math
import operator
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self

from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.read.records import RecordCounts

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("input_ids", "labels")
_COUNTERS = ("reasons", "lost")
_NUMBERS = ("unknown", "answers_with_unknown")


@dataclass(slots=True)
class DatasetStats:
    """Counts of rows and of what was left out; those of segments add up."""

    reasons: Counter[str] = field(default_factory=Counter)
    """What was left out or cut, by name."""
    unknown: int = 0
    """How many ids are ``<unk>``, of both columns."""
    answers_with_unknown: int = 0
    """Rows whose answer holds one."""
    lost: Counter[str] = field(default_factory=Counter)
    """The characters that these answers lost."""
    lengths: dict[str, list[int]] = field(default_factory=lambda: {name: [0] for name in COLUMNS})
    """For each column, how many rows have each length: entry n counts the rows of n ids."""
    records: RecordCounts = field(default_factory=RecordCounts)
    """What is counted of records that were accepted."""

    def add(self, other: "DatasetStats") -> None:
        """Take in the counts of others."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, lengths in other.lengths.items():
            self.lengths[name] = _sum(self.lengths[name], lengths)
        self.records.update(other.records)

    def subtract_pairs(self, counts: dict[str, Any]) -> None:
        """Take out a conversation that is left out after all; see ``pair_counts_as_json``."""
        for name in _COUNTERS:
            getattr(self, name).subtract(counts.get(name, {}))
        self.answers_with_unknown -= counts.get("answers_with_unknown", 0)

    def add_pairs(self, counts: PairCounts) -> None:
        """Take in what was counted while conversations became rows."""
        self.reasons.update(counts.reasons)
        self.lost.update(counts.lost)
        self.answers_with_unknown += counts.answers_with_unknown

    def add_rows(self, batch: "pa.RecordBatch", unk_id: int | None, sign: int = 1) -> None:
        """Count the lengths and the unknown ids of rows; sign -1: those that are left out."""
        import numpy as np  # late: who only adds counts up does without it

        from pipeline.store.arrow_numpy import as_numpy

        for name in COLUMNS:
            ids = batch.column(name)
            offsets = as_numpy(ids.offsets)
            if unk_id is not None:
                values = as_numpy(ids.values)[offsets[0] : offsets[-1]]
                self.unknown += sign * int(np.count_nonzero(values == unk_id))
            found = (sign * np.bincount(np.diff(offsets))).tolist()
            self.lengths[name] = _sum(self.lengths[name], found)

    @property
    def pairs(self) -> int:
        """How many rows there are."""
        return sum(self.lengths["labels"])

    def all_reasons(self) -> dict[str, int]:
        """Return what was left out, cut or noted, by name."""
        return {name: n for name, n in sorted((self.reasons + self.records.reasons).items()) if n}

    def tokens(self) -> dict[str, Any]:
        """Return the manifest's totals and percentiles."""
        totals = {name: sum(i * n for i, n in enumerate(c)) for name, c in self.lengths.items()}
        spread = {name: _percentiles(n) for name, n in self.lengths.items()}
        lost = sorted(self.lost.items(), key=lambda item: (-item[1], item[0]))
        return {
            **totals,
            "unknown": self.unknown,
            "answers_with_unknown": self.answers_with_unknown,
            "lost": [list(item) for item in lost if item[1]],
            "lengths": spread,
        }

    def as_json(self) -> dict[str, Any]:
        """Return the counts as JSON has them."""
        found: dict[str, Any] = {name: dict(+getattr(self, name)) for name in _COUNTERS}
        found |= {name: getattr(self, name) for name in _NUMBERS}
        found["lengths"] = self.lengths
        names = RecordCounts.__slots__
        found["records"] = {name: dict(getattr(self.records, name)) for name in names}
        return found

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Self:
        """Return what ``as_json`` gave."""
        counters = {name: Counter(found[name]) for name in _COUNTERS}
        numbers = {name: found[name] for name in _NUMBERS}
        records = RecordCounts(**{name: Counter(n) for name, n in found["records"].items()})
        return cls(**counters, **numbers, lengths=found["lengths"], records=records)  # type: ignore[arg-type]


def pair_counts_as_json(counts: PairCounts) -> dict[str, Any]:
    """Return what was counted of one conversation as JSON has it."""
    found: dict[str, Any] = {name: dict(+getattr(counts, name)) for name in _COUNTERS}
    found["answers_with_unknown"] = counts.answers_with_unknown
    return {name: value for name, value in found.items() if value}


def _sum(counts: list[int], more: list[int]) -> list[int]:
    """Return the sum of two histograms, of which one may be longer."""
    shorter, longer = sorted((counts, more), key=len)
    return [*map(operator.add, shorter, longer), *longer[len(shorter) :]]


def _percentiles(counts: list[int]) -> dict[str, int]:
    """Return the lengths at some shares of the rows, nearest rank."""
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    reached = list(accumulate(counts))
    return {
        name: bisect_left(reached, math.ceil(share * reached[-1])) for name, share in ranks.items()
    }
