"""What a preparation counts on the way, of one segment or of all, as the manifest has it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.read.records import RecordCounts
from pipeline.store.arrow_numpy import as_numpy

COLUMNS = ("input_ids", "labels")
_Histogram = npt.NDArray[np.int64]
_COUNTERS = ("reasons", "lost")
_NUMBERS = ("unknown", "answers_with_unknown")


def _no_lengths() -> dict[str, _Histogram]:
    return {name: np.zeros(1, np.int64) for name in COLUMNS}


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
    lengths: dict[str, _Histogram] = field(default_factory=_no_lengths)
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

    def subtract_rows(self, batch: pa.RecordBatch, unk_id: int | None) -> None:
        """Take out the rows of conversations that are left out after all."""
        gone = DatasetStats()
        gone.add_rows(batch, unk_id)
        self.unknown -= gone.unknown
        for name, lengths in gone.lengths.items():
            self.lengths[name] = _sum(self.lengths[name], -lengths)

    def subtract_pairs(self, counts: dict[str, Any]) -> None:
        """Take out what was counted of such a conversation, as ``pair_counts_as_json`` has it."""
        for name in _COUNTERS:
            getattr(self, name).subtract(counts.get(name, {}))
        self.answers_with_unknown -= counts.get("answers_with_unknown", 0)

    def add_pairs(self, counts: PairCounts) -> None:
        """Take in what was counted while conversations became rows."""
        self.reasons.update(counts.reasons)
        self.lost.update(counts.lost)
        self.answers_with_unknown += counts.answers_with_unknown

    def add_rows(self, batch: pa.RecordBatch, unk_id: int | None) -> None:
        """Count the lengths and the unknown ids of rows."""
        for name in COLUMNS:
            ids = batch.column(name)
            offsets = as_numpy(ids.offsets)
            if unk_id is not None:
                values = as_numpy(ids.values)[offsets[0] : offsets[-1]]
                self.unknown += int(np.count_nonzero(values == unk_id))
            found = np.bincount(np.diff(offsets))
            self.lengths[name] = _sum(self.lengths[name], found)

    @property
    def pairs(self) -> int:
        """How many rows there are."""
        return int(self.lengths["labels"].sum())

    def all_reasons(self) -> dict[str, int]:
        """Return what was left out, cut or noted, by name."""
        return {name: n for name, n in sorted((self.reasons + self.records.reasons).items()) if n}

    def tokens(self) -> dict[str, Any]:
        """Return the manifest's totals and percentiles."""
        totals = {name: int(n @ np.arange(len(n))) for name, n in self.lengths.items()}
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
        found["lengths"] = {name: lengths.tolist() for name, lengths in self.lengths.items()}
        names = RecordCounts.__slots__
        found["records"] = {name: dict(getattr(self.records, name)) for name in names}
        return found

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Self:
        """Return what ``as_json`` gave."""
        counters = {name: Counter(found[name]) for name in _COUNTERS}
        numbers = {name: found[name] for name in _NUMBERS}
        lengths = {name: np.array(n, np.int64) for name, n in found["lengths"].items()}
        records = RecordCounts(**{name: Counter(n) for name, n in found["records"].items()})
        return cls(**counters, **numbers, lengths=lengths, records=records)  # type: ignore[arg-type]


def pair_counts_as_json(counts: PairCounts) -> dict[str, Any]:
    """Return what was counted of one conversation as JSON has it."""
    found: dict[str, Any] = {name: dict(+getattr(counts, name)) for name in _COUNTERS}
    found["answers_with_unknown"] = counts.answers_with_unknown
    return {name: value for name, value in found.items() if value}


def _sum(counts: _Histogram, more: npt.NDArray[Any]) -> _Histogram:
    """Return the sum of two histograms, of which one may be longer."""
    longer, shorter = sorted((counts, more), key=len, reverse=True)
    total = longer.astype(np.int64)
    total[: len(shorter)] += shorter
    return total


def _percentiles(counts: _Histogram) -> dict[str, int]:
    """Return the lengths at some shares of the rows, nearest rank."""
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    reached = counts.cumsum()
    return {
        name: int(np.searchsorted(reached, np.ceil(share * reached[-1])))
        for name, share in ranks.items()
    }
