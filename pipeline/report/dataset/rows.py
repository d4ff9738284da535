"""The lengths of a prepared folder's rows, and which were surely cut, without torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PreparedFolderError
from pipeline.store.arrow_numpy import as_numpy
from pipeline.store.manifest import Manifest
from pipeline.store.shards import open_split

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each row's encoder and decoder side, each int64[rows]."""

    encoder: IntArray
    decoder: IntArray
    surely_cut: BoolArray
    """Rows whose encoder side was cut beyond doubt, bool[rows]; not all that were."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.encoder)


def read_lengths(folder: Path, manifest: Manifest, splits: list[str]) -> Lengths:
    """Return the lengths of some splits, in their order.

    Raises:
        PreparedFolderError: A shard is damaged.
    """
    found = [_split_lengths(folder, manifest, split) for split in splits]
    return Lengths(
        *(np.concatenate([getattr(one, name) for one in found]) for name in Lengths.__slots__)
    )


def _split_lengths(folder: Path, manifest: Manifest, split: str) -> Lengths:
    table = open_split(folder, manifest, split)
    try:
        table.validate(full=True)
        encoder, decoder = (_lengths(table.column(name)) for name in ("input_ids", "labels"))
        goes_on = _goes_on(table.column("conversation_id"), table.column("turn"))
    except (ValueError, KeyError, AttributeError) as error:  # pa.ArrowInvalid is a ValueError
        raise PreparedFolderError(
            "a shard is damaged",
            where=folder / split,
            got=error,
            do="run duet prepare again",
        ) from error
    return Lengths(encoder, decoder, surely_cut(encoder, decoder, goes_on))


def _lengths(column: pa.ChunkedArray) -> IntArray:
    parts = [np.diff(as_numpy(chunk.offsets)) for chunk in column.chunks if len(chunk)]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def _goes_on(ids: pa.ChunkedArray, turns: pa.ChunkedArray) -> BoolArray:
    """Return, for each row, whether it is a later answer of the conversation of the row before."""
    if len(ids) < 2:
        return np.zeros(len(ids), np.bool_)
    same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    later = pc.greater(turns.slice(1), turns.slice(0, len(turns) - 1))
    both = pc.cast(pc.and_(same, later), pa.uint8())
    return np.concatenate([[0], *map(as_numpy, both.chunks)]).astype(np.bool_)


def surely_cut(encoder: IntArray, decoder: IntArray, goes_on: BoolArray) -> BoolArray:
    """Return which rows have lost some of their history, as far as lengths tell.

    The history of a row holds the row before it, with its answer. A row that is shorter than that
    was cut, and so were all later rows of its conversation.

    Args:
        encoder: Tokens of each row, int64[rows].
        decoder: The same of the decoder side.
        goes_on: Whether a row is of the same conversation as the one before it, bool[rows].

    >>> surely_cut(np.array([30, 45, 40, 60, 20]), np.array([9, 9, 9, 9, 9]),
    ...            np.array([False, True, True, True, False])).tolist()
    [False, False, True, True, False]
    """
    shrunk = np.zeros(len(encoder), np.bool_)
    shrunk[1:] = goes_on[1:] & (encoder[1:] < encoder[:-1] + decoder[:-1])
    places = np.arange(len(encoder))
    begins = np.maximum.accumulate(np.where(goes_on, -1, places))
    return np.maximum.accumulate(np.where(shrunk, places, -1)) >= begins
