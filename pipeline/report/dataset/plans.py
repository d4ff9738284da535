"""Lengths -> the sections on what another window, or another batch plan, would do."""

from typing import Any

from pipeline.console.units import percent
from pipeline.fit.flops import FLAN_T5_BASE, ModelFlops
from pipeline.report.charts import Ranges, bar_chart, range_chart
from pipeline.report.dataset.padding import plan_costs
from pipeline.report.dataset.rows import Lengths
from pipeline.report.dataset.windows import Cuts, Range, WindowEffect, window_effects
from pipeline.report.page import Key, Picture, Section, Table
from pipeline.report.svg import StyleSheet

_FLOPS = ModelFlops.of(FLAN_T5_BASE)


def window_section(lengths: Lengths, cuts: Cuts, sheet: StyleSheet) -> Section:
    """Return what another ``--model-max-length`` would cut and cost; there is at least one row."""
    effects = window_effects(lengths, cuts, _FLOPS)
    names = [f"{effect.window:,}" for effect in effects]
    at = [effect.window for effect in effects].index(cuts.window)
    table = _window_table(effects, len(lengths))

    def shares(values: list[Range], whole: float, color: int) -> Ranges:
        return Ranges([v.low / whole for v in values], [v.high / whole for v in values], color)

    cut_chart = range_chart(
        names,
        [
            shares([effect.inputs_cut for effect in effects], len(lengths), 0),
            shares([effect.answers_cut for effect in effects], len(lengths), 1),
        ],
        at,
        sheet,
        label="Share of rows whose input or answer is cut, by window. "
        + "; ".join(f"{row[0]}: inputs {row[1]}, answers {row[2]}" for row in table.rows),
    )
    cost_chart = range_chart(
        names,
        [shares([effect.cost for effect in effects], 1.0, 2)],
        at,
        sheet,
        label="Operations of an epoch by window, today's is 100 %. "
        + "; ".join(f"{row[0]}: {row[5]}" for row in table.rows),
    )
    return Section(
        id="window",
        title="Another window",
        text=f"What another --model-max-length would cut and cost. The dashed line is today's, "
        f"{cuts.window:,}. What rows lost when they were cut is not stored: where a number is not "
        f"known exactly, a bar goes from the least that it can be to the most. "
        f"{cuts.inputs.high:,.0f} rows were cut; {int(lengths.surely_cut.sum()):,} of them are "
        f"known by their length.",
        blocks=[
            Picture(
                title="Rows that are cut",
                text="An input loses its oldest turns, an answer its end.",
                svg=cut_chart,
                table=table,
                legend=[Key("inputs, at most", 1), Key("answers, at most", 2)],
            ),
            Picture(
                title="Operations of an epoch",
                text="By the sizes of flan-t5-base, without padding, against today's window.",
                svg=cost_chart,
                table=table,
                legend=[Key("at most", 3), Key("from the least", 3, opacity=0.3)],
            ),
        ],
    )


def _window_table(effects: list[WindowEffect], rows: int) -> Table:
    return Table(
        header=[
            "window",
            "inputs cut",
            "answers cut",
            "answer tokens lost",
            "encoder tokens",
            "operations",
        ],
        rows=[
            [
                f"{effect.window:,}",
                _between(effect.inputs_cut, lambda n: f"{n:,.0f} ({percent(n / rows)})"),
                _between(effect.answers_cut, lambda n: f"{n:,.0f} ({percent(n / rows)})"),
                f"{effect.answer_tokens_lost:,}",
                _between(effect.encoder_tokens, "{:,.0f}".format),
                _between(effect.cost, "{:.0%}".format),
            ]
            for effect in effects
        ],
        note="Answer tokens lost are those that are stored and would go, so none for a larger "
        "window.",
    )


def _between(value: Range, form: Any) -> str:
    if form(value.low) == form(value.high):
        return str(form(value.high))
    return f"≤ {form(value.high)}" if not value.low else f"{form(value.low)} to {form(value.high)}"


def padding_picture(lengths: Lengths, sheet: StyleSheet) -> Picture:
    """Return what padding costs under some batch plans; there is at least one row."""
    costs = plan_costs(lengths, _FLOPS)
    names = [cost.plan for cost in costs]
    shares = [cost.share for cost in costs]
    label = "Share of operations on padding. " + "; ".join(
        f"{name}: {percent(share)}" for name, share in zip(names, shares, strict=True)
    )
    ours = [name.startswith("fit") for name in names]
    return Picture(
        title="Operations spent on padding",
        text="By batch plan, for flan-t5-base. Stock: batches of 8 rows, shuffled or in order of "
        "encoder length. fit: --per-device-train-batch-size 8; grouped is --group-by-length, the "
        "default.",
        svg=bar_chart(names, shares, sheet, label=label, form=percent, highlighted=ours),
        table=Table(
            header=["batch plan", "padding", "operations / without padding"],
            rows=[[c.plan, percent(c.share), f"{c.ratio:.3f}"] for c in costs],
        ),
    )
