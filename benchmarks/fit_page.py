"""The page and the picture of ``fit.py``."""

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

LABELS = {
    "ours": "`duet fit`",
    "ours-ungrouped": "`duet fit --no-group-by-length`",
    "random": "`Seq2SeqTrainer`, random order",
    "grouped": "`Seq2SeqTrainer`, `group_by_length`",
}
CLOCKS = {
    "wall": "",
    "processor": " It is processor time, as others used the machine too: with one thread, the "
    "wall-clock time of a quiet machine but for its caches.",
}
Results = list[dict[str, Any]]


def page(args: argparse.Namespace, speeds: Results, qualities: Results) -> str:
    """Return the page in Markdown."""
    any_result = (speeds + qualities)[0]
    data = (
        f"Made by `just bench fit`, shape `{args.shape}`{', bf16' if args.bf16 else ''}, on "
        f"{any_result['device']} (threads: {any_result['threads']}). Each side is a process of its "
        "own and all run in turn, from the same weights, on the rows of the same prepared folder, "
        f"with the same optimizer (`{args.optim}`) and rows per step; at most {args.rows_at_once} "
        "rows of full length at once, which for the stock trainer is its batch size, and more rows "
        "per step are its gradient accumulation. The time is that of the optimizer steps after "
        f"the first; starting up is not in it.{CLOCKS[args.clock]}\n"
    )
    parts = ["# How fast `fit` trains", data]
    if speeds:
        parts += ["## Target tokens a second", speed_table(args, speeds)]
    if not qualities:
        parts.append("Held-out bits per byte by time were not measured (`--minutes 0`).")
    else:
        parts += ["## Held-out bits per byte by time", quality_table(qualities)]
        parts.append("![bits per byte by time](fit.svg)\n")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def speed_table(args: argparse.Namespace, results: Results) -> str:
    """Return medians of the runs, how ours compares, and peak memory."""
    lines = [
        "| rows per step | side | target tokens/s | `duet fit` is so many times as fast "
        "| useful GFLOP/s | times | peak memory, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rows in args.rows:
        for side in args.sides:
            found = at(results, rows, side)
            ratios = [compared(at(results, rows, "ours"), found, what) for what in UNITS]
            tokens, flops = (median(rates(found, what)) for what in UNITS)
            memory = max(r["peak_memory"] for r in found) / 2**30
            lines.append(
                f"| {rows} | {LABELS[side]} | {tokens:,.0f} | {ratios[0]} "
                f"| {flops / 1e9:.1f} | {ratios[1]} | {memory:.2f} |"
            )
    steps = ", ".join(f"{args.rows_per_run // rows} of {rows} rows" for rows in args.rows)
    note = (
        f"Medians; runs of each side: {args.runs} (steps timed: {steps}); in brackets the least "
        "and the most ratio. Runs differ in seed and so in rows; useful operations, those that the "
        "tokens need without padding, weigh them: `group_by_length` begins with its longest rows. "
        "Memory: the most of any run, "
        "of tensors on a GPU, of the process on a CPU."
    )
    return "\n".join(lines) + "\n\n" + note


UNITS = ("target_tokens", "useful_flops")


def at(results: Results, rows: int, side: str) -> Results:
    return [r for r in results if r["settings"]["rows"] == rows and r["settings"]["side"] == side]


def rates(results: Results, what: str) -> list[float]:
    return [r[what] / r["seconds"] for r in results]


def median(values: list[float]) -> float:
    return statistics.median(values)


def compared(ours: Results, theirs: Results, what: str) -> str:
    """Return the median ratio of runs that ran next to each other, with the extremes."""
    if not ours or ours == theirs:
        return ""
    pairs = zip(rates(ours, what), rates(theirs, what), strict=True)
    ratios = [mine / other for mine, other in pairs]
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def quality_table(results: Results) -> str:
    """Return each side's last value, and what it trained on until then."""
    lines = [
        "| seed | side | minutes | steps | target tokens | bits per byte at the end "
        "| minutes until as good as random order at its end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        settings, last = result["settings"], result["snapshots"][-1]
        lines.append(
            f"| {settings['seed']} | {LABELS[settings['side']]} | {last['seconds'] / 60:.1f} "
            f"| {last['step']:,} | {result['target_tokens']:,} | {last['bits_per_byte']:.4f} "
            f"| {caught_up(result, results)} |"
        )
    first = results[0]["settings"]
    note = (
        f"{first['rows']} rows per step, learning rate {first['learning_rate']:g} after "
        f"{first['warmup_steps']} steps, no decay. Weights that a side had at times are evaluated "
        "afterwards, by plain transformers; neither that nor saving them is in the time. "
        "`train_flant5`'s preprocessing is not among the sides."
    )
    return "\n".join(lines) + "\n\n" + note


def caught_up(result: dict[str, Any], results: Results) -> str:
    """Return when a side is as good as random order ends, on the line between its snapshots."""
    seed = result["settings"]["seed"]
    stock = [
        r["snapshots"][-1]["bits_per_byte"]
        for r in results
        if r["settings"]["seed"] == seed and r["settings"]["side"] == "random"
    ]
    points = [(s["seconds"] / 60, s["bits_per_byte"]) for s in result["snapshots"]]
    for (t0, b0), (t1, b1) in itertools.pairwise(points):
        if stock and b1 <= stock[0] < b0:
            return f"{t0 + (t1 - t0) * (b0 - stock[0]) / (b0 - b1):.2f}"
    return ""


def plot(results: Results, path: Path) -> None:
    """Write the picture of bits per byte by time."""
    if not results:
        return
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    colors = dict(zip(LABELS, ("C0", "C2", "C3", "C1"), strict=True))
    seen = set()
    for result in results:
        side = result["settings"]["side"]
        # The first step's is that of fresh weights, far above all others.
        points = [(s["seconds"] / 60, s["bits_per_byte"]) for s in result["snapshots"][1:]]
        label = None if side in seen else LABELS[side].replace("`", "")
        axes.plot(*zip(*points, strict=True), marker="o", color=colors[side], label=label)
        seen.add(side)
    axes.set(
        xlabel=f"minutes of training ({results[0]['settings']['clock']} clock)",
        ylabel="held-out bits per byte",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
