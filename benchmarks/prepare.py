"""``prepare`` against a bare parse, a careful ``datasets.map`` and FastChat, at several sizes.

    just bench prepare EXPORT.json T5_TOKENIZER [--reference-python PYTHON] [--write FOLDER]

``EXPORT.json`` is a ShareGPT export, ``T5_TOKENIZER`` a folder with Flan-T5's ``tokenizer.json``
and ``spiece.model``, ``PYTHON`` the interpreter of an environment with ``fschat`` and the
``transformers`` 4 that it needs; without it that column is left out. All sides run in turn, as
whole processes but for the parse, which is timed inside one. Medians are printed, with how they
compare, and the floor: what parsing, hashing and writing the same bytes costs alone.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prepare_cores import measure

from pipeline.prepare.files.json_values import Record
from pipeline.prepare.files.reading import find_files, read_files

HERE = Path(__file__).parent
SIDES = {
    "parse": "bare `orjson.loads`",
    "cold": "`duet prepare`, cold",
    "again": "the same again",
    "grown": "1 % new records in the middle",
    "map": "`datasets.map`, two processes",
    "reference": "`train_flant5`'s preprocessing",
}
PARSE = """
import sys, time, orjson
data = open(sys.argv[1], "rb").read()
start = time.perf_counter()
orjson.loads(data)
print(time.perf_counter() - start)
"""
FLOOR = """
import hashlib, sys, time, orjson
start = time.perf_counter()
data = open(sys.argv[1], "rb").read()
hashlib.sha256(data).digest()
orjson.loads(data)
words = set(data.split())
rows = b"".join(open(path, "rb").read() for path in sys.argv[3:])
hashlib.sha256(rows).digest()
with open(sys.argv[2], "wb") as file:
    file.write(rows)
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--reference-python")
    parser.add_argument("--reference-up-to", type=int, default=1500, help="most records for it")
    parser.add_argument("--records", type=int, nargs="+", default=[1500, 5000, 0], help="0: all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--map-runs", type=int, default=2, help="it takes minutes")
    parser.add_argument("--write", type=Path, help="folder for prepare.md and prepare.svg")
    args = parser.parse_args()
    # What is installed has its bytecode: no side compiles its modules at each start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    records = all_records(args.export)
    results = []
    with tempfile.TemporaryDirectory(dir=args.export.parent) as folder:
        for count in args.records:
            bench = Bench(Path(folder) / str(count), args, records[: count or None])
            results.append(bench.run())
            print(results[-1]["line"], file=sys.stderr)
        cores = measure(Path(folder) / "cores", records, args.tokenizer, args.runs)
    text = f"{table(results)}\n\n{cores}"
    print(text)
    if args.write:
        args.write.mkdir(parents=True, exist_ok=True)
        (args.write / "prepare.md").write_text(page(text, results), encoding="utf-8")
        plot(results, args.write / "prepare.svg")


def all_records(export: Path) -> list[Any]:
    """Return the records that have turns; the others have no answer to empty ones."""
    found = (f.value for _, f in read_files(find_files([str(export)])) if isinstance(f, Record))
    return [record for record in found if record["conversations"]]


class Bench:
    """All sides on one size."""

    def __init__(self, folder: Path, args: argparse.Namespace, records: list[Any]) -> None:
        folder.mkdir()
        self.folder, self.args, self.records = folder, args, records
        self.file, self.grown = folder / "records.json", folder / "grown.json"
        self.file.write_text(json.dumps(records, indent=2), encoding="utf-8")
        self.grown.write_text(json.dumps(with_new(records), indent=2), encoding="utf-8")

    def run(self) -> dict[str, Any]:
        times: dict[str, list[float]] = {}
        sides = dict(self.sides())
        for run in range(self.args.runs):
            for name, side in sides.items():
                if name not in ("map", "reference") or run < self.args.map_runs:
                    os.sync()  # what the side before left for the disk is not this one's
                    times.setdefault(name, []).append(side())
        medians = {name: statistics.median(values) for name, values in times.items()}
        size = self.file.stat().st_size
        return {
            "records": len(self.records),
            "bytes": size,
            "seconds": medians,
            "times": times,
            "floor": self.floor(),
            "line": f"{len(self.records)} records, {size / 1e6:.1f} MB: {medians}",
        }

    def sides(self) -> Iterator[tuple[str, Callable[[], float]]]:
        yield "parse", lambda: float(output([sys.executable, "-c", PARSE, str(self.file)]))
        yield "cold", self.cold
        yield "again", lambda: self.prepare(self.file)
        yield "grown", lambda: self.prepare(self.grown)
        yield "map", self.map
        python, most = self.args.reference_python, self.args.reference_up_to
        if python and len(self.records) <= most:
            side = [python, str(HERE / "reference_side.py"), str(self.file), self.args.tokenizer]
            yield "reference", lambda: seconds(side)

    def cold(self) -> float:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        return self.prepare(self.file)

    def prepare(self, file: Path) -> float:
        command = [sys.executable, "-m", "pipeline", "prepare", "--data-path", str(file)]
        command += ["--model-name-or-path", self.args.tokenizer]
        return seconds([*command, "--output-dir", str(self.folder / "out")])

    def map(self) -> float:
        shutil.rmtree(self.folder / "map", ignore_errors=True)
        tokenizer = next((self.folder / "out").glob("*/tokenizer"))
        side = [sys.executable, str(HERE / "prepare_map.py"), str(self.file), str(tokenizer)]
        return seconds([*side, str(self.folder / "map")])

    def floor(self) -> float:
        """Return what one core needs to read, hash, parse and split the file and write the rows."""
        self.cold()
        shards = map(str, (self.folder / "out").glob("*/train/*.arrow"))
        side = [sys.executable, "-c", FLOOR, str(self.file), str(self.folder / "rows"), *shards]
        return float(output(side))


def with_new(records: list[Any]) -> list[Any]:
    """Return the records with 1 % new ones in the middle."""
    middle = len(records) // 2
    new = []
    for i, record in enumerate(records[:: len(records) // max(1, len(records) // 100)]):
        turns = [t | {"value": f"{t['value']} ({i})"} for t in record["conversations"]]
        new.append({"id": f"new{i}", "conversations": turns})
    return records[:middle] + new + records[middle:]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    output(command)
    return time.perf_counter() - start


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def table(results: list[dict[str, Any]]) -> str:
    heads = [f"{r['records']:,} records, {r['bytes'] / 1e6:.0f} MB" for r in results]
    lines = ["| seconds, median | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for side, label in SIDES.items():
        cells = []
        for result in results:
            taken = result["seconds"].get(side)
            cells.append("" if taken is None else f"{taken:.2f}{compared(side, result)}")
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    floors = " | ".join(f"{result['floor']:.2f}" for result in results)
    lines.append(f"| floor, one core: read, hash, parse, split, write | {floors} |")
    cost = " | ".join(f"{r['seconds']['cold'] / r['bytes'] * 1e9:.1f}" for r in results)
    lines.append(f"| cold, seconds a GB | {cost} |")
    return "\n".join(lines)


def compared(side: str, result: dict[str, Any]) -> str:
    taken = result["seconds"]
    if side == "cold":
        return f" ({taken['cold'] / taken['parse']:.1f} parses)"
    if side in ("again", "grown"):
        return f" ({taken[side] / taken['cold']:.2f} of cold)"
    if side in ("map", "reference"):
        return f" ({taken[side] / taken['cold']:.1f} times cold)"
    return ""


def page(text: str, results: list[dict[str, Any]]) -> str:
    runs = ", ".join(f"{SIDES[side]} {len(values)}" for side, values in results[0]["times"].items())
    return (
        "# How long `prepare` takes\n\n"
        "Made by `just bench prepare`: all sides in turn on one machine, whole processes but for "
        f"the parse, each when what the one before it wrote is on disk. Runs: {runs}. The floor "
        "is what one core needs to read, hash, parse and "
        f"split the input and to write the rows.\n\n{text}\n\n![seconds by size](prepare.svg)\n"
    )


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for side, label in SIDES.items():
        points = [(r["bytes"] / 1e6, r["seconds"][side]) for r in results if side in r["seconds"]]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label.replace("`", ""))
    axes.set(xscale="log", yscale="log", xlabel="input, MB", ylabel="seconds, median")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
