"""Rows that are not yet a record batch."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.store.arrow_numpy import lists, numbers, strings
from pipeline.window import Ids

IDS_PER_BATCH = 1 << 23
"""A conversation of a million turns has rows of gigabytes."""


@dataclass(slots=True)
class Rows:
    """The columns of ``row_schema``, as they grow."""

    size: int = 0
    """Ids so far."""
    sources: list[Ids] = field(default_factory=list)
    """All ids of ``input_ids``, in pieces."""
    targets: list[Ids] = field(default_factory=list)
    """The same of ``labels``."""
    source_lengths: list[int] = field(default_factory=list)
    target_lengths: list[int] = field(default_factory=list)
    conversation_ids: list[str] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, source: list[Ids], target: list[Ids], conversation_id: str, turn: int) -> None:
        """Append one row: the ids of both columns in pieces, and what they are of."""
        self.sources += source
        self.targets += target
        self.source_lengths.append(sum(map(len, source)))
        self.target_lengths.append(sum(map(len, target)))
        self.size += self.source_lengths[-1] + self.target_lengths[-1]
        self.conversation_ids.append(conversation_id)
        self.turns.append(turn)

    @property
    def is_full(self) -> bool:
        """Whether they are enough for a batch."""
        return self.size >= IDS_PER_BATCH

    def batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """Return all rows as Arrow has them."""
        columns = [
            lists(np.concatenate(self.sources), self.source_lengths),
            lists(np.concatenate(self.targets), self.target_lengths),
            strings(self.conversation_ids),
            numbers(np.array(self.turns, np.int32)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)
