"""A prepared folder's split as rows of tensors, memory-mapped.

    manifest.json, train/shard-*.arrow  ->  {"input_ids": int64[S], "labels": int64[T]}

Ids lie on disk as uint16 or int32 and are widened a row at a time, one by one or straight into a
padded batch; nothing else is read or kept.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from pipeline.console.units import round_up
from pipeline.errors import ConfigError, PreparedFolderError
from pipeline.fit.data.collate import IGNORED, Batch
from pipeline.fit.data.sampler import IntArray
from pipeline.store.arrow_numpy import as_numpy
from pipeline.store.manifest import Manifest, read_manifest
from pipeline.store.shards import open_split

Row = dict[str, torch.Tensor]
COLUMNS = ("input_ids", "labels")


class SupervisedDataset(Dataset[Row]):
    """Map-style rows of a prepared folder; what a stock ``Seq2SeqTrainer`` takes as it is.

    Args:
        path: The prepared folder.
        split: ``train`` or ``eval``.
        num_rows: Only the first so many rows; None for all.

    Raises:
        PreparedFolderError: The folder is missing, incomplete or damaged, or has no such split.
        ConfigError: ``num_rows`` is less than 1.
    """

    def __init__(
        self, path: str | Path, split: str = "train", *, num_rows: int | None = None
    ) -> None:
        if num_rows is not None and num_rows < 1:
            raise ConfigError(
                "a setting is out of range",
                where="num_rows",
                got=num_rows,
                do="give 1 or more, or None for all",
            )
        self.path, self.split, self.num_rows = Path(path), split, num_rows
        self.manifest: Manifest = read_manifest(self.path)
        table = open_split(self.path, self.manifest, split)
        self._length = int(table.num_rows if num_rows is None else min(num_rows, table.num_rows))
        chunks = {name: self._checked(table, name).chunks for name in COLUMNS}
        self.columns = {name: ListColumn(chunks[name]) for name in COLUMNS}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        """Return ``{"input_ids": int64[S], "labels": int64[T]}`` of one row.

        Raises:
            IndexError: There is no such row.
        """
        row = index + self._length if index < 0 else index
        if not 0 <= row < self._length:
            raise IndexError(f"row {index} of {self._length}")
        return {
            name: torch.from_numpy(column[row].astype(np.int64))
            for name, column in self.columns.items()
        }

    def batch(self, rows: IntArray, pad_id: int, *, multiple: int = 1) -> Batch:
        """Return some rows as one padded batch: what the collator makes of them, without lists.

        Args:
            rows: Indices of B rows, none negative.
            pad_id: The id that ``input_ids`` are padded with.
            multiple: S and T are rounded up to multiples of it.

        Returns:
            int64 tensors: ``input_ids`` [B, S], ``attention_mask`` [B, S], ``labels`` [B, T].
        """
        sources, targets = (self.columns[name] for name in COLUMNS)
        ids, mask = sources.padded(rows, pad_id, multiple)
        labels, _ = targets.padded(rows, IGNORED, multiple)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary as a path: the worker maps the files itself."""
        return (_reopened, (self.path, self.split, self.num_rows))

    @functools.cached_property
    def lengths(self) -> tuple[IntArray, IntArray]:
        """The tokens of each row's encoder and decoder side: two int64[rows]."""
        encoder, decoder = (column.lengths()[: self._length] for column in self.columns.values())
        return encoder, decoder

    @property
    def fingerprint(self) -> str:
        """A name of what the rows are."""
        return self.manifest.fingerprint

    @property
    def rows_per_epoch(self) -> int:
        """Rows that an epoch takes, the same number in each."""
        return len(self)

    def epoch_rows(self, seed: int, epoch: int) -> IntArray:
        """Return the rows of an epoch, ascending: all; those of a mixture are drawn."""
        return np.arange(len(self))

    def values(self, name: str, rows: Iterable[int]) -> list[Any]:
        """Return a column's values of some rows, which alone are read."""
        column = open_split(self.path, self.manifest, self.split).column(name)
        return [column[row].as_py() for row in rows]

    def conversation_ids(self, rows: Iterable[int]) -> list[str]:
        """Return the ids of the conversations that some rows are from."""
        return self.values("conversation_id", rows)

    def check_ids(self, vocab_size: int) -> None:
        """Read all ids, and refuse one that is below 0, or not below ``vocab_size``."""
        for name, column in self.columns.items():
            low, high = column.range()
            if low < 0 or high >= vocab_size:
                raise self._damaged(f"{name} from {low} to {high}, the vocabulary has {vocab_size}")

    def _checked(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        """Return a column in which each row's place in the values is one."""
        try:
            column = table.column(name)
            column.validate(full=True)
        except (pa.ArrowInvalid, KeyError) as error:
            raise self._damaged(f"{name}: {error}") from error
        if not pa.types.is_list(column.type):
            raise self._damaged(f"{name} is of type {column.type}")
        return column

    def _damaged(self, got: str) -> PreparedFolderError:
        return PreparedFolderError(
            "a shard is damaged",
            where=self.path / self.split,
            got=got,
            do="run duet prepare again",
        )


def _reopened(path: Path, split: str, num_rows: int | None) -> SupervisedDataset:
    return SupervisedDataset(path, split, num_rows=num_rows)


class ListColumn:
    """A list column as numpy views of its chunks' buffers, for quick access at random.

    A ``ChunkedArray`` looks for the chunk of a row from the first one on, and there is a chunk
    for each record batch; here it is a binary search.
    """

    def __init__(self, chunks: Iterable[pa.ListArray]) -> None:
        self.chunks = [chunk for chunk in chunks if len(chunk)]
        # A chunk's offsets are into its whole buffer of values, also where the chunk is a slice.
        self._offsets = [as_numpy(chunk.offsets) for chunk in self.chunks]
        self._values = [as_numpy(chunk.values) for chunk in self.chunks]
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self.chunks])

    def __getitem__(self, row: int) -> npt.NDArray[np.integer[npt.NBitBase]]:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, at = self._offsets[chunk], row - self._starts[chunk]
        values: npt.NDArray[np.integer[npt.NBitBase]] = self._values[chunk]
        return values[offsets[at] : offsets[at + 1]]

    def padded(self, rows: IntArray, fill: int, multiple: int) -> tuple[IntArray, IntArray]:
        """Return rows side by side, filled up on the right, and where they are not: 1."""
        values = [self[int(row)] for row in rows]
        longest = round_up(max(map(len, values)), multiple)
        ids = np.full((len(rows), longest), fill, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(values):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return ids, mask

    def range(self) -> tuple[int, int]:
        """Return the lowest and the highest value."""
        parts = [values for values in self._values if len(values)]
        lowest, highest = ([f(values) for values in parts] for f in (np.min, np.max))
        return int(min(lowest, default=0)), int(max(highest, default=0))

    def lengths(self) -> IntArray:
        """Return the values of each row."""
        parts = [np.diff(offsets) for offsets in self._offsets]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
