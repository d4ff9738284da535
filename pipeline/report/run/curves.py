"""The logs of runs -> pictures over steps: one for each thing that was logged."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.console.units import percent
from pipeline.report.charts import Format, Line, line_chart, number
from pipeline.report.page import Key, Picture, Table
from pipeline.report.run.output import Run
from pipeline.report.svg import SERIES, StyleSheet

MOST_POINTS = 240
"""Of a line; where there were more entries, each point is the mean of some."""


class Curve(NamedTuple):
    """Which values share a picture."""

    title: str
    text: str
    ends: tuple[str, ...]
    """The names of its values; one that begins with * stands for all that end so."""
    form: Format = number
    may_be_log: bool = False
    """Whether its axis is logarithmic where values are far apart."""


CURVES = (
    Curve(
        "Loss",
        "Per target token; training since the entry before, evaluation on the whole set.",
        ("loss", "eval_loss", "*_loss"),
    ),
    Curve(
        "Bits per byte",
        "Of the evaluated answers' text; compares across tokenizers.",
        ("eval_bits_per_byte", "*_bits_per_byte"),
    ),
    Curve("Learning rate", "", ("learning_rate",)),
    Curve("Gradient norm", "Before clipping.", ("grad_norm",), may_be_log=True),
    Curve("Target tokens a second", "Of all processes.", ("target_tokens_per_second",)),
    Curve(
        "Share of peak",
        "MFU: operations without padding, as a share of the device's peak.",
        ("mfu", "mfu_datasheet"),
        percent,
    ),
    Curve("Memory", "Peak so far, in GiB.", ("peak_memory_gib",)),
    Curve(
        "Time lost",
        "Operations on padding; time that steps waited for data.",
        ("padding_share", "data_wait_share"),
        percent,
    ),
)
_NOT_A_CURVE = ("train_loss",)  # one figure, of the end
_EVAL_SET = re.compile(r"eval_(.+)_(?:loss|bits_per_byte)")
_NAMES = {
    "loss": "training",
    "eval_loss": "eval",
    "eval_bits_per_byte": "eval",
    "mfu": "measured peak",
    "mfu_datasheet": "data sheet's peak",
    "padding_share": "padding",
    "data_wait_share": "data wait",
}


class Points(NamedTuple):
    """A line's points."""

    run: int
    key: str
    xs: list[float]
    ys: list[float]


def curve_pictures(runs: Sequence[Run], sheet: StyleSheet) -> Iterator[Picture]:
    """Yield a picture for each of ``CURVES`` that a run has values for."""
    last = max((run.last_step for run in runs), default=0)
    for curve in CURVES:
        keys = _keys(curve, runs)
        lines = [
            Points(i, key, *condensed(*run.series(key)))
            for i, run in enumerate(runs)
            for key in keys
            if key in run.logged()
        ]
        if lines:
            yield _picture(curve, keys, lines, runs, sheet, last)


def _keys(curve: Curve, runs: Sequence[Run]) -> list[str]:
    there = dict.fromkeys(key for run in runs for key in run.logged())
    found = [
        key
        for end in curve.ends
        for key in there
        if (key == end or (end[0] == "*" and key.startswith("eval_") and key.endswith(end[1:])))
    ]
    return list(dict.fromkeys(key for key in found if key not in _NOT_A_CURVE))


def condensed(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most ``MOST_POINTS`` points: means of consecutive ones, at the last one's place.

    >>> condensed([1, 2], [5.0, 6.0])
    ([1, 2], [5.0, 6.0])
    """
    each = math.ceil(len(xs) / MOST_POINTS)
    if each < 2:
        return list(xs), list(ys)
    parts = [ys[at : at + each] for at in range(0, len(ys), each)]
    ends = [min(at + each, len(xs)) - 1 for at in range(0, len(xs), each)]
    return [xs[end] for end in ends], [_mean(part) for part in parts]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _picture(
    curve: Curve,
    keys: list[str],
    lines: list[Points],
    runs: Sequence[Run],
    sheet: StyleSheet,
    last: int,
) -> Picture:
    names = [_line_name(line, keys, runs) for line in lines]
    colors = [_color(line, keys, runs) for line in lines]
    chart = line_chart(
        [
            Line(
                line.xs,
                line.ys,
                color,
                keys.index(line.key) if len(runs) > 1 else 0,
                line.key.startswith("eval_"),
            )
            for line, color in zip(lines, colors, strict=True)
        ],
        sheet,
        label=_label(curve, names, lines),
        form=curve.form,
        last=last,
        may_be_log=curve.may_be_log,
    )
    most = max(len(runs[line.run].series(line.key)[0]) for line in lines)
    note = f"Each point is the mean of up to {math.ceil(most / MOST_POINTS)} entries."
    return Picture(
        title=curve.title,
        text=curve.text,
        svg=chart,
        table=_table(names, lines, curve.form, note if most > MOST_POINTS else ""),
        legend=[
            Key(name, color % len(SERIES) + 1, keys.index(line.key) % 4 if len(runs) > 1 else 0)
            for name, color, line in zip(names, colors, lines, strict=True)
        ]
        if len(lines) > 1
        else [],
    )


def _color(line: Points, keys: list[str], runs: Sequence[Run]) -> int:
    """Return a line's colour: of its run, where there are several, else of its key."""
    return line.run if len(runs) > 1 else keys.index(line.key)


def _line_name(line: Points, keys: list[str], runs: Sequence[Run]) -> str:
    key = _NAMES.get(line.key) or _EVAL_SET.sub(r"eval \1", line.key)
    if len(runs) == 1:
        return key
    name = runs[line.run].name
    return f"{name}: {key}" if len(keys) > 1 else name


def _label(curve: Curve, names: list[str], lines: list[Points]) -> str:
    """Return a picture in words: where each line begins and ends, and its least value."""
    parts = []
    for name, line in zip(names, lines, strict=True):
        known = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
        if known:
            (x0, y0), (x1, y1) = known[0], known[-1]
            least, most = min(y for _, y in known), max(y for _, y in known)
            parts.append(
                f"{name}: {curve.form(y0)} at step {x0:,.0f}, {curve.form(y1)} at step {x1:,.0f}, "
                f"from {curve.form(least)} to {curve.form(most)}"
            )
    return f"{curve.title} over steps. " + ("; ".join(parts) or "No finite value") + "."


def _table(names: list[str], lines: list[Points], form: Format, note: str) -> Table:
    values = [dict(zip(line.xs, line.ys, strict=True)) for line in lines]
    steps = sorted({step for line in lines for step in line.xs})
    return Table(
        header=["step", *names],
        rows=[
            [f"{step:,.0f}", *(_cell(found.get(step), form) for found in values)] for step in steps
        ],
        note=note,
    )


def _cell(value: float | None, form: Format) -> str:
    if value is None:
        return ""
    return form(value) if math.isfinite(value) else "not finite"
