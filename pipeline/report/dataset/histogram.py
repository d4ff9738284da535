"""Lengths of both sides -> a two-dimensional histogram: a picture in quarter octaves, and a table
in whole ones."""

import math

import numpy as np

from pipeline.report.charts import heat_map, strength_of
from pipeline.report.dataset.rows import IntArray, Lengths
from pipeline.report.page import Key, Picture, Table
from pipeline.report.svg import StyleSheet

_PER_OCTAVE = 4
_MOST_LEVELS = 6


def bin_edges(lengths: IntArray, per_octave: int = _PER_OCTAVE) -> list[int]:
    """Return edges of bins that hold lengths: more than an edge, up to the next one.

    The first and the last are powers of two. A length of 1 is in the bin up to 2.

    >>> bin_edges(np.array([40, 100]), 1), bin_edges(np.array([64]), 2)
    ([32, 64, 128], [32, 45, 64])
    """
    low = math.ceil(math.log2(max(int(lengths.min()), 2))) - 1
    high = max(math.ceil(math.log2(max(int(lengths.max()), 2))), low + 1)
    edges = {round(2 ** (n / per_octave)) for n in range(low * per_octave, high * per_octave + 1)}
    return sorted(edges)


def counts_of(lengths: Lengths, edges: tuple[list[int], list[int]]) -> IntArray:
    """Return the rows of each bin, int64[encoder bins, decoder bins]."""
    across, up = (
        np.maximum(np.searchsorted(side, values, side="left") - 1, 0)
        for side, values in zip(edges, (lengths.encoder, lengths.decoder), strict=True)
    )
    shape = len(edges[0]) - 1, len(edges[1]) - 1
    flat = np.bincount(across * shape[1] + up, minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.int64)


def length_picture(lengths: Lengths, sheet: StyleSheet) -> Picture:
    """Return how long the rows are on both sides; there is at least one row."""
    fine = bin_edges(lengths.encoder), bin_edges(lengths.decoder)
    counts = counts_of(lengths, fine)
    levels = _levels(int(counts.max()))
    middles = [int(np.median(side)) for side in (lengths.encoder, lengths.decoder)]
    label = (
        f"Two-dimensional histogram of {len(lengths):,} rows by length. Encoder: "
        f"{lengths.encoder.min():,} to {lengths.encoder.max():,} tokens, median {middles[0]:,}; "
        f"decoder: {lengths.decoder.min():,} to {lengths.decoder.max():,}, median {middles[1]:,}."
    )
    return Picture(
        title="Encoder and decoder tokens of each row",
        text="The stronger the colour, the more rows. Both axes are logarithmic.",
        svg=heat_map(fine, counts, levels, sheet, label=label),
        table=_table(lengths),
        legend=[
            Key(_level_name(levels, i), 1, opacity=strength_of(i, len(levels)))
            for i in range(len(levels))
        ],
    )


def _levels(most: int) -> list[int]:
    """Return the least counts of some levels, each about as many times the one before.

    >>> _levels(1), _levels(900)
    ([1], [1, 3, 10, 30, 93, 290])
    """
    count = min(_MOST_LEVELS, most)
    return sorted({max(round(most ** (i / count)), 1) for i in range(count)})


def _level_name(levels: list[int], at: int) -> str:
    low = levels[at]
    if at + 1 == len(levels):
        return f"{low:,} or more rows"
    high = levels[at + 1] - 1
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _table(lengths: Lengths) -> Table:
    edges = bin_edges(lengths.encoder, 1), bin_edges(lengths.decoder, 1)
    counts = counts_of(lengths, edges)
    return Table(
        header=["encoder \\ decoder", *map(_bin_name, edges[1][:-1], edges[1][1:]), "all"],
        rows=[
            [_bin_name(low, high), *(f"{n:,}" for n in column), f"{column.sum():,}"]
            for low, high, column in zip(edges[0][:-1], edges[0][1:], counts, strict=True)
        ],
        note="Rows in bins of whole powers of two; the picture has four bins for each of these.",
    )


def _bin_name(low: int, high: int) -> str:
    return f"{low + 1 if low > 1 else 1:,}–{high:,}"
