"""How sure a number is: bootstrap intervals, and of two models that of the difference.

Conversations are drawn, not pairs: the answers of one conversation are alike. Two models are
compared on the same draws, for what is hard for one is hard for the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.generation.evaluate.metrics import Columns, Metric

DRAWS = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Return it with None for what is not a number."""
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(part) else part for name, part in parts.items()}


class Draws:
    """Draws of conversations with replacement, the same for every metric and model.

    Args:
        conversations: Which conversation each pair is from.
        seed: Of the draws.
    """

    def __init__(self, conversations: Sequence[str], seed: int) -> None:
        names, self._of = np.unique(np.array(conversations, dtype=object), return_inverse=True)
        self._count = len(names)
        drawn = np.random.default_rng(seed).integers(self._count, size=(DRAWS, self._count))
        self._weights = np.stack([np.bincount(d, minlength=self._count) for d in drawn])

    def interval(self, metric: Metric, pairs: npt.NDArray[np.bool_] | None = None) -> Interval:
        """Return a metric over all pairs, or some of them."""
        if pairs is None:
            pairs = np.ones(len(metric.columns), bool)
        columns = self._per_conversation(metric.columns * pairs[:, None])
        values = self._values(metric, columns)
        # A draw that holds none of them says nothing.
        values[self._weights @ self._per_conversation(pairs[:, None])[:, 0] == 0] = math.nan
        return _interval(metric.value(columns.sum(axis=0)), values)

    def difference(self, one: Metric, other: Metric) -> Interval:
        """Return how much more the second model has than the first, on the same draws."""
        columns = [self._per_conversation(metric.columns) for metric in (one, other)]
        value = other.value(columns[1].sum(axis=0)) - one.value(columns[0].sum(axis=0))
        return _interval(value, self._values(other, columns[1]) - self._values(one, columns[0]))

    def _per_conversation(self, columns: npt.NDArray[Any]) -> Columns:
        sums = np.zeros((self._count, columns.shape[1]))
        np.add.at(sums, self._of, columns)
        return sums

    def _values(self, metric: Metric, columns: Columns) -> Columns:
        return np.array([metric.value(sums) for sums in self._weights @ columns])


def _interval(value: float, drawn: Columns) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(value, math.nan, math.nan)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
