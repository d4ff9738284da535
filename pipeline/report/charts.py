"""Numbers -> pictures. Their text is ours alone: names from data stand in the page's legend."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.report.svg import MUTED, SERIES, StyleSheet, inline_svg, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.8)), (0, (6, 2, 1.5, 2)))
"""Of the lines of one colour; ``page.css`` has the same."""
_SIZE = (4.8, 3.2)
_LOG_RATIO = 50
"""Values that are all positive, and further apart than this, go on a logarithmic axis."""

Format = Callable[[float], str]


def number(value: float) -> str:
    """Return a number as people write it.

    >>> [number(value) for value in (12345.6, 3.14159, 5e-05, 0)]
    ['12,346', '3.142', '5e-05', '0']
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Line(NamedTuple):
    """One line of a chart."""

    xs: Sequence[float]
    ys: Sequence[float]
    """A NaN is a gap."""
    color: int
    """Its place in ``SERIES``; further ones begin again."""
    dash: int = 0
    """Its place in ``DASHES``; likewise."""
    marked: bool = False
    """Whether each point is marked."""


def line_chart(
    lines: Sequence[Line],
    sheet: StyleSheet,
    *,
    label: str,
    last: int,
    form: Format = number,
    may_be_log: bool = False,
) -> str:
    """Return lines over the steps up to the last one, so that all charts have the same axis."""
    with style():
        figure, axes = _axes(form)
        for line in lines:
            # A single point is no line.
            marker = "o" if line.marked or len(line.xs) == 1 else None
            axes.plot(
                line.xs,
                line.ys,
                color=SERIES[line.color % len(SERIES)],
                linestyle=DASHES[line.dash % len(DASHES)],
                marker=marker,
                markersize=3.5,
            )
        values = [y for line in lines for y in line.ys if math.isfinite(y)]
        if may_be_log and values and min(values) > 0 and max(values) / min(values) > _LOG_RATIO:
            _log_scale(axes, form)
        margin = 0.03 * max(last, 1)
        axes.set_xlim(-margin, last + margin)
        axes.set_xlabel("step")
        return inline_svg(figure, label, sheet)


class Ranges(NamedTuple):
    """Numbers that lie between two each; where these are the same, they are known."""

    lows: Sequence[float]
    highs: Sequence[float]
    color: int


def range_chart(
    names: Sequence[str], ranges: Sequence[Ranges], at: int, sheet: StyleSheet, *, label: str
) -> str:
    """Return shares at named places: a bar from low to high, and a line along the highs.

    Args:
        names: Of the places, evenly apart.
        ranges: To draw.
        at: The place to mark: where things stand now.
        sheet: Takes the styles.
        label: The picture in words.
    """
    with style():
        figure, axes = _axes("{:.0%}".format)
        places = list(range(len(names)))
        axes.axvline(at, color=MUTED, linewidth=1, linestyle=DASHES[1])
        for lows, highs, color in ranges:
            axes.vlines(places, lows, highs, color=SERIES[color], alpha=0.3, linewidth=11)
            axes.plot(places, highs, color=SERIES[color], marker="o", markersize=4, linewidth=1.2)
        axes.set_xticks(places, names)
        axes.set_xlabel("--model-max-length, tokens")
        axes.set_ylim(bottom=0)
        return inline_svg(figure, label, sheet)


def bar_chart(
    names: Sequence[str],
    values: Sequence[float],
    sheet: StyleSheet,
    *,
    label: str,
    form: Format,
    highlighted: Sequence[bool],
) -> str:
    """Return horizontal bars, each with its value; the first one on top."""
    with style():
        figure, axes = _axes(form)
        places = list(range(len(names)))
        colors = [SERIES[0] if is_ours else MUTED for is_ours in highlighted]
        axes.barh(places, values, color=colors, height=0.62)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                form(value), (value, place), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*values, 1e-9]) * 1.16)
        axes.grid(visible=False)
        axes.get_xaxis().set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return inline_svg(figure, label, sheet)


def heat_map(
    edges: tuple[Sequence[int], Sequence[int]],
    counts: Any,
    levels: Sequence[int],
    sheet: StyleSheet,
    *,
    label: str,
) -> str:
    """Return a two-dimensional histogram on logarithmic axes; more rows, stronger colour.

    Args:
        edges: Of the bins, across (encoder) and up (decoder), in tokens.
        counts: Rows of each bin, int64[across, up].
        levels: The least count of each strength, ascending; the first is 1.
        sheet: Takes the styles.
        label: The picture in words.
    """
    from matplotlib.collections import PolyCollection

    with style():
        figure, axes = _axes(number, size=(4.8, 4.1))
        across, up = ([math.log2(edge) for edge in side] for side in edges)
        for i, low in enumerate(levels):
            high = levels[i + 1] if i + 1 < len(levels) else math.inf
            cells = [
                _rectangle(x0, x1, y0, y1)
                for (x0, x1), column in zip(itertools.pairwise(across), counts, strict=True)
                for (y0, y1), count in zip(itertools.pairwise(up), column, strict=True)
                if low <= count < high
            ]
            strength = strength_of(i, len(levels))
            axes.add_collection(
                PolyCollection(
                    cells, facecolors=SERIES[0], alpha=strength, linewidths=0, antialiaseds=False
                )
            )
        for axis, side in ((axes.xaxis, edges[0]), (axes.yaxis, edges[1])):
            powers = [n for n in range(32) if side[0] <= 1 << n <= side[-1]]
            axis.set_ticks(powers, [f"{1 << n:,}" for n in powers])
        axes.set_xlim(across[0], across[-1])
        axes.set_ylim(up[0], up[-1])
        axes.grid(visible=True, axis="both")
        axes.tick_params(axis="x", labelrotation=40)
        axes.set_xlabel("encoder tokens")
        axes.set_ylabel("decoder tokens")
        return inline_svg(figure, label, sheet)


def strength_of(level: int, levels: int) -> float:
    """Return the opacity of a level of a heat map, to two decimals: the legend has the same."""
    return round(0.14 + 0.86 * (level + 1) / levels, 2) if levels > 1 else 1.0


def _rectangle(x0: float, x1: float, y0: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _axes(form: Format, size: tuple[float, float] = _SIZE) -> "tuple[Figure, Axes]":
    """Return an empty figure; no window, no global state."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, axis="y")
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    return figure, axes


def _log_scale(axes: "Axes", form: Format) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
