"""Which rows a step takes: (lengths, global batch size, seed, epoch) -> an order of rows.

The order is a function of these alone, so the same command is the same run on any number of
processes. With grouping by length, rows of like length come into the same step:

    shuffled rows -> windows of 8,192 rows -> groups of about 8 rows of like length
    -> each step takes a group of every stretch of lengths

A step of 128 rows has 16 groups, one of each sixteenth of its window, drawn by chance: a step is
as long as any other. A step of 8 rows is one group, and all long or all short. Without grouping a
step takes rows as they come, and only the cut of a step (``micro_batches.py``) saves padding.

On real conversations, micro-batches of 8 rows are then padded to 1.03 times their operations; in
windows of 4,096 rows to 1.04, of 16,384 to 1.02. An epoch has at least four windows, so that rows
meet others in each epoch.

Rows are halved again and again, each time by the side that leaves less padding: the shorter half
by encoder length, or by decoder length. On real conversations, groups of 8 out of 4,096 rows are
padded to 1.04 times their operations; sorted into bands of encoder length and then by decoder
length, to 1.06; sorted by encoder length alone, to 1.43; as they come, to 1.99.

All windows of a shuffled order are halved at once, so the work is NumPy's alone. A row travels as
one number that sorts by one side first, ``A | B | place``, in 16, 16 and 31 bits: no two are
equal, so which rows a half gets depends on no sorting routine.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

WINDOW_ROWS = 8192
"""Rows of the shuffled order among which those of like length are put together, at least."""
WINDOW_STEPS = 4
"""The same in steps, for steps of thousands of rows."""
WINDOWS_PER_EPOCH = 4
"""Windows of an epoch, at least, as far as it has as many steps."""
GROUP_ROWS = 8
"""About how many rows of like length a step takes at a time."""
_LENGTH, _PLACE = (1 << 16) - 1, (1 << 31) - 1
_FIRST, _SECOND = 47, 31
"""Where the two lengths begin, in bits."""


class BatchSampler:
    """The rows of every optimizer step of a run.

    Args:
        encoder_lengths: Tokens of each row of the data set, int64[rows].
        decoder_lengths: The same of the decoder side.
        global_batch_size: What a step takes; the last of an epoch may take less.
        seed: Of the shuffling.
        group_by_length: Put rows of like length into the same step.
        epoch_rows: (seed, epoch) -> the rows of an epoch, as many in each; None: all.

    >>> lengths = np.array([9, 1, 8, 2, 7])
    >>> steps = BatchSampler(lengths, lengths, global_batch_size=2, seed=0)
    >>> steps.steps_per_epoch
    3
    >>> [len(steps.rows_of(step)) for step in range(3)]
    [2, 2, 1]
    >>> sorted(int(row) for step in range(3) for row in steps.rows_of(step))
    [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        encoder_lengths: IntArray,
        decoder_lengths: IntArray,
        *,
        global_batch_size: int,
        seed: int,
        group_by_length: bool = True,
        epoch_rows: Callable[[int, int], IntArray] | None = None,
    ) -> None:
        every = np.arange(len(encoder_lengths))
        self._epoch_rows = epoch_rows or (lambda seed, epoch: every)
        self._lengths = encoder_lengths, decoder_lengths
        self._seed, self._group = seed, group_by_length
        self.global_batch_size = global_batch_size
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Steps that take every row of an epoch once; the last may be smaller."""
        return math.ceil(len(self._epoch_rows(self._seed, 0)) / self.global_batch_size)

    def rows_of(self, step: int) -> IntArray:
        """Return the rows that a step takes, by index, counted from 0 over the whole run."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rows = self._epoch_rows(self._seed, epoch)
            order = epoch_order(
                *(side[rows] for side in self._lengths),
                global_batch_size=self.global_batch_size,
                seed=self._seed,
                epoch=epoch,
                group_by_length=self._group,
            )
            self._epoch, self._order = epoch, rows[order]
        return self._order[at * self.global_batch_size : (at + 1) * self.global_batch_size]


def epoch_order(
    encoder_lengths: IntArray,
    decoder_lengths: IntArray,
    *,
    global_batch_size: int,
    seed: int,
    epoch: int,
    group_by_length: bool = True,
) -> IntArray:
    """Return the rows of an epoch, step by step, int64[rows]: a permutation, not to be written to.

    The arguments are those of ``BatchSampler``; epochs are counted from 0.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(encoder_lengths)).astype(np.int64)
    if group_by_length:
        at = 0
        for windows, steps in windows_of(len(order) // global_batch_size, global_batch_size):
            part = order[at : at + windows * steps * global_batch_size].reshape(windows, -1)
            groups = group_sizes(global_batch_size)
            sizes = [size for size in groups for _ in range(steps)]
            places = group_alike(encoder_lengths[part], decoder_lengths[part], sizes)
            spread = _spread(np.take_along_axis(part, places, axis=1), groups, steps, random)
            order[at : at + spread.size] = spread.ravel()
            at += spread.size
    order.flags.writeable = False
    return order


def windows_of(steps: int, global_batch_size: int) -> list[tuple[int, int]]:
    """Return how an epoch's whole steps are shared out to windows: (windows, steps of each).

    >>> windows_of(7472, 8), windows_of(116, 512), windows_of(3, 8), windows_of(0, 8)
    ([(3, 1068), (4, 1067)], [(4, 17), (3, 16)], [(3, 1)], [])
    """
    wanted = max(math.ceil(WINDOW_ROWS / global_batch_size), WINDOW_STEPS)
    windows = max(steps // max(min(wanted, steps // WINDOWS_PER_EPOCH), 1), 1)
    each, more = divmod(steps, windows)
    return [(n, size) for n, size in ((more, each + 1), (windows - more, each)) if n and size]


def group_sizes(global_batch_size: int) -> list[int]:
    """Return the rows of each group of a step: about ``GROUP_ROWS``, in all the step's.

    >>> group_sizes(8), group_sizes(20), group_sizes(5)
    ([8], [10, 10], [5])
    """
    groups = max(round(global_batch_size / GROUP_ROWS), 1)
    edges = [global_batch_size * i // groups for i in range(groups + 1)]
    return [end - start for start, end in itertools.pairwise(edges)]


def _spread(
    rows: IntArray, groups: Sequence[int], steps: int, random: np.random.Generator
) -> IntArray:
    """Give each step of a window one group of every stretch of lengths, drawn by chance.

    Args:
        rows: int64[windows, rows], the groups one after the other: ``steps`` groups of the first
            size, then ``steps`` of the second, and so on. These are the stretches.
        groups: The sizes of a step's groups.
        steps: How many a window has.
        random: What the draw is made with.

    Returns:
        int64[windows, steps, global batch size].
    """
    spread, at = [], 0
    for size in groups:
        stretch = rows[:, at : at + steps * size].reshape(len(rows), steps, size)
        draw = random.permuted(np.tile(np.arange(steps), (len(rows), 1)), axis=1)
        spread.append(np.take_along_axis(stretch, draw[:, :, None], axis=1))
        at += steps * size
    return np.concatenate(spread, axis=2)


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
