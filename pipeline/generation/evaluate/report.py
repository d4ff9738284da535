"""What an evaluation found, as a table for people."""

import math
from collections.abc import Iterator
from typing import Any

from pipeline.console.units import counted

_DIGITS = 4  # after the point: no metric tells more of a model


def table(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a report: models side by side, their groups, their differences."""
    names = list(report["models"])
    widths = [max(len(name), 24) for name in names]
    is_one = report["conversations"] == 1  # which says nothing of others
    intervals = "no intervals: one conversation" if is_one else "95 % intervals"
    pairs, conversations = (
        counted(report[name], name.removesuffix("s")) for name in ("pairs", "conversations")
    )
    yield f"{pairs} of {conversations}; {intervals}"
    head = "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))
    yield f"{'':24}{head}"
    first = report["models"][names[0]]
    for title, groups in {"": {"all": None}, **first["groups"]}.items():
        for group in groups:
            cells = [
                m["metrics"] if not title else m["groups"][title][group]["metrics"]
                for m in report["models"].values()
            ]
            if title:
                count = first["groups"][title][group]["pairs"]
                yield f"{title}: {group} ({counted(count, 'pair')})"
            for metric in first["metrics"]:
                row = (f"  {_cell(c[metric]):>{w}}" for c, w in zip(cells, widths, strict=True))
                yield f"  {metric:22}{''.join(row)}"
    for difference in report["differences"]:
        yield f"{difference['than']} -> {difference['model']} (*: the interval leaves out 0)"
        for metric, interval in difference["metrics"].items():
            sure = "" if is_one or _holds_zero(interval) else "  *"
            yield f"  {metric:22}  {_cell(interval, '+'):>24}{sure}"
    yield from (f"{name}: {text}" for name, text in report["signatures"].items())


def _cell(interval: dict[str, float | None], sign: str = "") -> str:
    value, low, high = (
        "–" if number is None else f"{round(number, _DIGITS):{sign}.4g}"
        for number in (interval["value"], interval["low"], interval["high"])
    )
    return f"{value} [{low}, {high}]"


def _holds_zero(interval: dict[str, float | None]) -> bool:
    low, high = (math.nan if interval[name] is None else interval[name] for name in ("low", "high"))
    return not (low > 0 or high < 0)  # type: ignore[operator]
