"""How the examples of a step are split into micro-batches and balanced over processes.

    rows -> pieces of like length on both sides, each within a budget -> [round][process]

A piece is cut in two where that saves most padding, as long as it saves more than one more
micro-batch costs. The budget is of padded tokens: short rows may be many at once, and still no
micro-batch needs more memory than the user's own number of the longest rows.

On real conversations, steps of 8, 128 and 512 rows that were grouped by length are padded to 1.02
times their operations; steps of rows as they come to 1.05, 1.06 and 1.05. Of two, four or eight
processes that share 128 rows, the slowest has 1.00, 1.02 or 1.03 times the mean to do.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.console.units import round_up
from pipeline.fit.data.sampler import IntArray

OVERHEAD_TOKENS = 256
"""What a micro-batch costs whatever is in it, as the operations of a row of so many tokens on
each side. On one thread of a CPU it was 31 (0.8 M weights in the layers), 65 (44 M) and 117 (33 M,
wide): neither layers nor weights alone tell it. On a GPU, where kernels are started one by one, it
was not measured and will be more. It need not be exact: on real rows, steps of 8 and of 64 cost at
most 0.4 % more with 256 than with the best constant, whether 60, 256 or 1,024 is true."""
IMBALANCE = 0.03
"""How much more than the mean a process may have to do in a step, where its rows can be cut so."""


class Shape(NamedTuple):
    """The sizes of a padded micro-batch."""

    rows: int
    encoder: int
    """Tokens of each row on the encoder's side, padding counted."""
    decoder: int
    """The same of the decoder's side."""

    def __str__(self) -> str:
        """Return it in words."""
        tokens = f"{self.encoder:,} + {self.decoder:,} tokens"
        return f"{self.rows} row{'s' if self.rows != 1 else ''} of {tokens}"


class Piece(NamedTuple):
    """Rows that may become a micro-batch."""

    rows: IntArray
    cost: float
    """Operations of the padded batch, in the forward pass."""
    total_cost: float
    """The same with what its micro-batches cost by themselves."""
    fits: bool
    """Whether it is within the budget."""


class MicroBatcher:
    """Splits the steps of one data set into micro-batches.

    Args:
        encoder_lengths: Tokens of each row of the data set, int64[rows].
        decoder_lengths: The same of the decoder side.
        flops: The operations of a row of given lengths: see ``flops.ModelFlops``.
        max_rows: How many of the longest rows are within the budget. Memory that holds them holds
            every micro-batch.
        multiple: Batches are padded to multiples of so many tokens.

    >>> lengths = np.array([2000, 100, 1900, 200, 900, 150])
    >>> batcher = MicroBatcher(lengths, lengths, flops=lambda s, t: s + t, max_rows=2)
    >>> [rows.tolist() for rows in batcher.split(np.arange(6))]
    [[2, 0], [4], [1, 5, 3]]
    >>> [[rows.tolist() for rows in parts] for parts in batcher.balance(np.array([0, 2, 4]), 2)]
    [[[0], [2]], [[], [4]]]
    """

    def __init__(
        self,
        encoder_lengths: IntArray,
        decoder_lengths: IntArray,
        *,
        flops: Callable[[Any, Any], Any],
        max_rows: int,
        multiple: int = 1,
    ) -> None:
        self.flops, self.multiple = flops, multiple
        self._lengths = encoder_lengths, decoder_lengths
        self._encoder, self._decoder = (
            round_up(side, multiple) for side in (encoder_lengths, decoder_lengths)
        )
        self.fullest = Shape(max_rows, int(self._encoder.max()), int(self._decoder.max()))
        self._overhead = float(flops(OVERHEAD_TOKENS, OVERHEAD_TOKENS))

    def shape(self, rows: IntArray) -> Shape:
        """Return the sizes of the batch of some rows."""
        return Shape(len(rows), int(self._encoder[rows].max()), int(self._decoder[rows].max()))

    def cost(self, rows: IntArray) -> float:
        """Return the operations of the padded batch of some rows, in the forward pass."""
        count, encoder, decoder = self.shape(rows)
        return float(count * self.flops(encoder, decoder))

    def useful(self, rows: IntArray) -> float:
        """Return the operations of some rows without any padding, in the forward pass."""
        return float(self.flops(*(side[rows] for side in self._lengths)).sum())

    def split(self, rows: IntArray) -> list[IntArray]:
        """Return the rows of each micro-batch of some rows, the costliest first."""
        return [piece.rows for piece in self._split(rows)]

    def balance(self, rows: IntArray, processes: int) -> list[list[IntArray]]:
        """Split the examples of a step so that each process has as much to do.

        Returns:
            ``[round][process]`` -> rows of a micro-batch. Each process has a place in each round,
            which is empty only where it has no row left to fill it with.
        """
        pieces = self._split(rows)
        shares = _balanced(pieces, processes)
        while _can_be_evener(shares) and self._halve_costliest(pieces):
            shares = _balanced(pieces, processes)
        rounds = max(len(share) for share in shares)
        for share in shares:
            # A place costs its overhead anyway; with rows of the others in it, it saves padding.
            while len(share) < rounds and self._halve_costliest(share):
                pass
        nothing = np.empty(0, np.int64)
        return [
            [share[i].rows if i < len(share) else nothing for share in shares]
            for i in range(rounds)
        ]

    def _split(self, rows: IntArray) -> list[Piece]:
        pieces, left = [], [self._piece(rows)]
        while left:
            piece = left.pop()
            parts = self._parted(piece, np.arange(1, len(piece.rows)))
            if parts and (
                not piece.fits or sum(part.total_cost for part in parts) < piece.total_cost
            ):
                left += parts
            else:
                pieces.append(piece)
        return sorted(pieces, key=lambda piece: piece.cost, reverse=True)

    def _halve_costliest(self, pieces: list[Piece]) -> bool:
        """Halve, in place, the costliest piece of several rows; return whether there was one."""
        several = [i for i, piece in enumerate(pieces) if len(piece.rows) > 1]
        if several:
            piece = pieces.pop(max(several, key=lambda i: pieces[i].cost))
            pieces += self._parted(piece, np.array([len(piece.rows) // 2]))
        return bool(several)

    def _parted(self, piece: Piece, places: IntArray) -> list[Piece]:
        """Part a piece in two, sorted by one side, where both parts together are cheapest.

        The first part may have as many rows as one of ``places`` says; without any, there are none.
        """
        if not len(places):
            return []
        options = []
        for side in (self._encoder, self._decoder):
            rows = piece.rows[np.argsort(side[piece.rows], kind="stable")]
            costs = self._total_costs(rows, places)
            costs = costs + self._total_costs(rows[::-1], len(rows) - places)
            at = int(costs.argmin())
            options.append((float(costs[at]), rows, int(places[at])))
        _, rows, at = min(options, key=lambda option: option[0])
        return [self._piece(rows[:at]), self._piece(rows[at:])]

    def _total_costs(self, rows: IntArray, counts: IntArray) -> Any:
        """Return what the first so many of the rows would cost, for each of the counts."""
        encoder, decoder = (
            np.maximum.accumulate(side[rows])[counts - 1] for side in (self._encoder, self._decoder)
        )
        cost = counts * self.flops(encoder, decoder)
        return cost + self._overhead * self._pieces(counts, encoder, decoder)

    def _pieces(self, rows: Any, encoder: Any, decoder: Any) -> Any:
        """Return how many micro-batches rows of these lengths take at least: numbers or arrays."""
        most, *lengths = self.fullest
        sides = zip((encoder, decoder), lengths, strict=True)
        return np.maximum(*(-(-rows * length // (most * longest)) for length, longest in sides))

    def _piece(self, rows: IntArray) -> Piece:
        cost, pieces = self.cost(rows), float(self._pieces(*self.shape(rows)))
        return Piece(rows, cost, cost + self._overhead * pieces, pieces == 1)


def _balanced(pieces: Sequence[Piece], processes: int) -> list[list[Piece]]:
    """Give each piece, the costliest first, to the process that has least to do so far."""
    shares: list[list[Piece]] = [[] for _ in range(processes)]
    loads = [(0.0, process) for process in range(processes)]
    for piece in sorted(pieces, key=lambda piece: piece.total_cost, reverse=True):
        load, process = heapq.heappop(loads)
        shares[process].append(piece)
        heapq.heappush(loads, (load + piece.total_cost, process))
    return shares


def _can_be_evener(shares: Sequence[Sequence[Piece]]) -> bool:
    """Return whether a process has too much to do, and that not in a single example."""
    loads = [math.fsum(piece.total_cost for piece in share) for share in shares]
    most = shares[loads.index(max(loads))]
    too_much = max(loads) > (1 + IMBALANCE) * math.fsum(loads) / len(loads)
    return too_much and sum(len(piece.rows) for piece in most) > 1
