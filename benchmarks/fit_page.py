"""The page and the picture of what ``fit.py`` measured, of one or several of its ``WORK`` folders.

    just bench fit_page WORK [WORK ...] [--write FOLDER]

Sides that are not measured yet are left out, so it can be made while ``fit.py`` runs.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.store.manifest import read_manifest

LABELS = {
    "ours": "`duet fit`",
    "ours-ungrouped": "`duet fit --no-group-by-length`",
    "ours-muon": "`duet fit --optim muon`",
    "random": "`Seq2SeqTrainer`, random order",
    "grouped": "`Seq2SeqTrainer`, `group_by_length`",
    "reference": "`Seq2SeqTrainer` on the rows of `train_flant5`",
}
COLORS = dict(zip(LABELS, ("C0", "C2", "C4", "C3", "C1", "C7"), strict=True))
METHOD = """\
Made by `just bench fit`. Each side is a process of its own and all run in turn, from the same \
weights, with the same optimizer, rate and global batch size, on the rows of the same prepared \
folder. What is given as rows at once is the stock trainer's batch size, and a larger global batch \
size is its gradient accumulation. The time is that of the optimizer steps after the first; \
starting up is not in it."""
SPEED_NOTE = """\
Medians of the runs; in brackets the least and the most ratio of runs that ran next to each other. \
Runs differ in seed and so in rows; useful operations, those that the tokens need without padding, \
weigh them. The steps of `group_by_length` come in random order: its sampler begins with its \
longest rows. Memory: the most of any run, of tensors on a GPU, of the process on a CPU."""
QUALITY_NOTE = """\
No decay of the rate. Weights that a side had at times are evaluated afterwards, all by the same \
code; neither that nor saving them is in the time."""
REFERENCE_NOTE = """\
`train_flant5`'s rows are what its own preprocessing makes of the same records, less the \
conversations held out, in the ids of its own tokenizer. Its bits are those of its own labels of \
the conversations held out, {theirs} bytes as FastChat's server decodes them; the labels of the \
other sides decode to {ours}. (Parts of a conversation are rows of their own there, so some \
answers come twice.)"""
PROCESSOR = """\
The clock is processor time with one thread, as others used the machine, too: the wall-clock time \
of one quiet core but for its caches."""
KEPT = """\
Processes keep memory that they freed (`--keep-freed`), which spares the stock trainer's large \
tensors most of their page faults."""
PICTURE = "fit.svg"
UNITS = ("target_tokens", "useful_flops")
Results = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("works", type=Path, nargs="+", metavar="WORK")
    parser.add_argument("--write", type=Path, help="folder for fit.md and fit.svg")
    args = parser.parse_args()
    write(args.works, args.write)


def write(works: Iterable[Path], folder: Path | None) -> None:
    """Print the page; write page and picture into a folder, if there is one."""
    works = list(works)
    speeds = found(works, "speed")
    qualities = [r for r in found(works, "quality") if "bits_per_byte" in r["snapshots"][-1]]
    text = page(speeds, qualities)
    print(text)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fit.md").write_text(text, encoding="utf-8")
        if qualities:
            plot(qualities, folder / PICTURE)


def found(works: list[Path], part: str) -> Results:
    """Return what was measured, sides in the order of their names."""
    paths = sorted(path for work in works for path in (work / part).glob("*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    order = list(LABELS)
    return sorted(results, key=lambda r: (r["settings"]["seed"], order.index(side_of(r))))


def side_of(result: dict[str, Any]) -> str:
    return str(result["settings"]["side"])


def page(speeds: Results, qualities: Results) -> str:
    """Return the page in Markdown."""
    parts = ["# How fast `fit` trains", METHOD]
    if speeds:
        parts.append("## Target tokens a second")
        for conditions, results in by(speeds, conditions_of).items():
            parts += [conditions, speed_table(results)]
        parts.append(SPEED_NOTE)
    parts.append("## Held-out bits per byte by time")
    for conditions, results in by(qualities, conditions_of).items():
        parts += [conditions, quality_table(results), quality_note(results)]
    parts.append(
        f"![bits per byte by time and by steps]({PICTURE})" if qualities else "Not measured."
    )
    return "\n\n".join(parts) + "\n"


def by(results: Results, key: Callable[[dict[str, Any]], Any]) -> dict[Any, Results]:
    """Return results by a key, in their order."""
    groups: dict[Any, Results] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def conditions_of(result: dict[str, Any]) -> str:
    """Return in words what must be the same to be compared."""
    settings = result["settings"]
    length = read_manifest(Path(settings["prepared"])).config["model_max_length"]
    shape = Path(settings["model"]).name.rpartition("-")[0]
    words = (
        f"Shape `{shape}`{' in bf16' if settings['bf16'] else ''}, rows of at most {length:,} + "
        f"{length:,} tokens, {settings['rows_at_once']} rows at once, `{settings['optim']}`, on "
        f"{result['device']} (threads: {result['threads']})."
    )
    notes = [PROCESSOR] * (settings["clock"] == "processor") + [KEPT] * settings["keep_freed"]
    return " ".join([words, *notes])


def speed_table(results: Results) -> str:
    """Return medians of the runs, how ours compares, and peak memory."""
    lines = [
        "| global batch size | side | runs | target tokens/s | `duet fit` is faster by "
        "| useful GFLOP/s | of matmul peak | times | peak memory, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rows, runs in sorted(by(results, lambda r: r["settings"]["rows"]).items()):
        sides = by(runs, side_of)
        for side in (side for side in LABELS if side in sides):
            ratios = [compared(sides.get("ours", []), sides[side], what) for what in UNITS]
            tokens, flops = (statistics.median(rate(r, u) for r in sides[side]) for u in UNITS)
            peak = of_peak(sides[side], flops)
            memory = max(r["peak_memory"] for r in sides[side]) / 2**30
            runs_of = f"{len(sides[side])} of {sides[side][0]['steps']} steps"
            lines.append(
                f"| {rows} | {LABELS[side]} | {runs_of} "
                f"| {tokens:,.0f} | {ratios[0]} | {flops / 1e9:.1f} | {peak} "
                f"| {ratios[1]} | {memory:.2f} |"
            )
    return "\n".join(lines)


def rate(result: dict[str, Any], what: str) -> float:
    return float(result[what] / result["seconds"])


def of_peak(runs: Results, flops: float) -> str:
    """Return the useful share of the device's best, where runs measured it."""
    peaks = [r["matmul_peak"] for r in runs if "matmul_peak" in r]
    return f"{flops / statistics.median(peaks):.0%}" if peaks else ""


def compared(ours: Results, theirs: Results, what: str) -> str:
    """Return the median ratio of runs that ran next to each other, with the extremes."""
    mine = {r["settings"]["seed"]: rate(r, what) for r in ours}
    pairs = [(mine.get(r["settings"]["seed"]), rate(r, what)) for r in theirs if r not in ours]
    ratios = [ours / other for ours, other in pairs if ours is not None]
    if not ratios:
        return ""
    extremes = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{extremes}"


def quality_table(results: Results) -> str:
    """Return each side's last value, and what it trained on until then."""
    lines = [
        "| seed | side | minutes | steps | target tokens | bits per byte at the end "
        "| minutes until as good as random order at its end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        last = result["snapshots"][-1]
        lines.append(
            f"| {result['settings']['seed']} | {LABELS[side_of(result)]} "
            f"| {last['seconds'] / 60:.1f} | {result['steps']:,} | {result['target_tokens']:,} "
            f"| {last['bits_per_byte']:.4f} | {caught_up(result, results)} |"
        )
    return "\n".join(lines)


def quality_note(results: Results) -> str:
    settings = results[0]["settings"]
    words = (
        f"Global batch size {settings['rows']}, learning rate {settings['learning_rate']:g} after "
        f"{settings['warmup_steps']} steps. {QUALITY_NOTE}"
    )
    rates = {r["settings"]["muon_learning_rate"] for r in results if side_of(r) == "ours-muon"}
    if rates:
        words += f" With Muon the learning rate is {', '.join(f'{rate:g}' for rate in rates)}."
    sizes = {side: f"{group[0]['eval_bytes']:,}" for side, group in by(results, side_of).items()}
    if "reference" in sizes and "ours" in sizes:
        words += " " + REFERENCE_NOTE.format(theirs=sizes["reference"], ours=sizes["ours"])
    return words


def caught_up(result: dict[str, Any], results: Results) -> str:
    """Return when a side is as good as random order ends, on the line between its snapshots."""
    seed = result["settings"]["seed"]
    stock = [
        r["snapshots"][-1]["bits_per_byte"]
        for r in results
        if r["settings"]["seed"] == seed and side_of(r) == "random"
    ]
    points = [(s["seconds"] / 60, s["bits_per_byte"]) for s in result["snapshots"]]
    for (t0, b0), (t1, b1) in itertools.pairwise(points):
        if stock and b1 <= stock[0] < b0:
            return f"{t0 + (t1 - t0) * (b0 - stock[0]) / (b0 - b1):.2f}"
    return ""


def plot(results: Results, path: Path) -> None:
    """Write the picture of bits per byte by time, and by steps."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "fit"
    figure, (by_time, by_steps) = pyplot.subplots(1, 2, figsize=(10, 4.5), sharey=True)
    seen = set()
    for result in results:
        side = side_of(result)
        # The first step's is that of fresh weights, far above all others.
        taken = result["snapshots"][1:]
        bits = [snapshot["bits_per_byte"] for snapshot in taken]
        style = {"marker": "o", "markersize": 4, "color": COLORS[side]}
        style["linestyle"] = ("-", "--", ":")[result["settings"]["seed"] % 3]
        label = None if side in seen else LABELS[side].replace("`", "")
        by_time.plot([s["seconds"] / 60 for s in taken], bits, label=label, **style)
        by_steps.plot([s["step"] for s in taken], bits, **style)
        seen.add(side)
    clock = results[0]["settings"]["clock"]
    by_time.set(xlabel=f"minutes of training ({clock} clock)", ylabel="held-out bits per byte")
    by_steps.set(xlabel=f"optimizer steps of {results[0]['settings']['rows']} rows")
    for axes in (by_time, by_steps):
        axes.grid(alpha=0.3)
    by_time.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
