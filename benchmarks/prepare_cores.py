"""What more cores give ``prepare``: who takes how much processor time, and a model made of it.

Runs with two workers are measured on the same records in four forms, and on a part of them. The
parent's processor time and the workers' are then each a fixed part and one that grows with the
bytes; two sizes give both. From these:

    seconds(cores) = parent + worker + max(rounds x segment, growing part of the parent)

``parent`` and ``worker`` are the fixed parts, ``segment`` the time that a worker takes for one, and
``rounds`` how many segments the busiest worker takes. The parent does its share while workers do
theirs, so what grows of it counts only where it is the longer one.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE = Path(__file__).with_name("prepare_side.py")
CORES = (1, 2, 8, 32, 64, 128)
SEGMENT = 5e6
"""Bytes of a segment in the mean, of a ShareGPT export."""
_ROWS_A_GROUP = 1000  # as ``datasets`` writes Parquet
_RECORDS_A_FILE = 20


@dataclass(frozen=True, slots=True)
class Parts:
    """Processor time of a run: fixed seconds, and seconds a byte, of the parent and a worker."""

    parent: float
    parent_per_byte: float
    worker: float
    per_byte: float

    def seconds(self, num_bytes: float, cores: int) -> float:
        """Return how long a cold run takes by the model."""
        growing = num_bytes * self.parent_per_byte
        if cores == 1:  # all is done in one process
            return self.parent + self.worker + growing + num_bytes * self.per_byte
        segments = max(num_bytes / SEGMENT, 1.0)
        rounds = segments / cores if segments > 20 * cores else math.ceil(segments / cores)
        work = rounds * num_bytes / segments * self.per_byte
        return self.parent + self.worker + max(work, growing)


def fit_parts(small: dict[str, float], large: dict[str, float]) -> Parts:
    """Return the parts that explain two runs with two workers."""
    size = large["bytes"] - small["bytes"]
    parent_per_byte = max((large["parent"] - small["parent"]) / size, 0.0)
    per_byte = (large["workers"] - small["workers"]) / size
    return Parts(
        large["parent"] - parent_per_byte * large["bytes"],
        parent_per_byte,
        (large["workers"] - per_byte * large["bytes"]) / 2,
        per_byte,
    )


def measure(folder: Path, records: list[Any], tokenizer: str, runs: int) -> str:
    """Return the page's section on cores: what was measured in turn, and what follows from it."""
    forms = dict(write_forms(folder, records))
    few = folder / "few.json"
    few.write_text(json.dumps(records[: len(records) // 5], indent=2), encoding="utf-8")
    sides = {(name, 2): path for name, path in forms.items()}
    sides |= {("few", 2): few, ("few", 1): few, ("one JSON array", 1): forms["one JSON array"]}
    found: dict[tuple[str, int], list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(runs):
        for (name, workers), path in sides.items():
            found[name, workers].append(run(path, tokenizer, folder / "out", workers))
    medians = {
        side: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for side, each in found.items()
    }
    return page(medians, list(forms))


def write_forms(folder: Path, records: list[Any]) -> Iterator[tuple[str, Path]]:
    """Write the records in each form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    array, lines, table = (folder / f"records.{end}" for end in ("json", "jsonl", "parquet"))
    array.write_text(json.dumps(records, indent=2), encoding="utf-8")
    yield "one JSON array", array
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    lines.write_text(text, encoding="utf-8")
    yield "JSON Lines", lines
    many = folder / "many"
    many.mkdir()
    for at in range(0, len(records), _RECORDS_A_FILE):
        text = json.dumps(records[at : at + _RECORDS_A_FILE])
        (many / f"{at:06d}.json").write_text(text, encoding="utf-8")
    yield f"{-(-len(records) // _RECORDS_A_FILE):,} files", many
    turns = [
        [{"from": t["from"], "value": t["value"]} for t in record["conversations"]]
        for record in records
    ]
    columns = {"id": [str(record["id"]) for record in records], "conversations": turns}
    pq.write_table(pa.table(columns), table, row_group_size=_ROWS_A_GROUP)
    yield "Parquet", table


def run(path: Path, tokenizer: str, output: Path, workers: int) -> dict[str, float]:
    """Prepare a path, cold; return what it took."""
    subprocess.run(["rm", "-rf", str(output)], check=True)
    os.sync()  # what the run before left for the disk is not this one's
    command = [sys.executable, str(SIDE), "--data-path", str(path), "--output-dir", str(output)]
    command += ["--model-name-or-path", tokenizer, "--num-workers", str(workers)]
    start = time.perf_counter()
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    taken = time.perf_counter() - start
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    return {**json.loads(printed), "seconds": taken, "bytes": float(size)}


def page(medians: dict[tuple[str, int], dict[str, float]], forms: list[str]) -> str:
    """Return both tables, with what they say."""
    parts = fit_parts(medians["few", 2], medians["one JSON array", 2])
    lines = [
        "## What more cores give",
        "",
        "Two workers, cold; processor time of the parent, which plans, puts together and "
        "publishes, and of the workers. Memory: of the parent, and of the largest worker.",
        "",
        "| form | MB | seconds | parent, s | workers, s | parent's share | MB each, at most |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in forms:
        one = medians[name, 2]
        share = one["parent"] / (one["parent"] + one["workers"])
        lines.append(
            f"| {name} | {one['bytes'] / 1e6:.0f} | {one['seconds']:.2f} | {one['parent']:.2f} | "
            f"{one['workers']:.2f} | {share:.1%} | "
            f"{one['parent_mb']:.0f}, {one['worker_mb']:.0f} |"
        )
    lines += ["", _model(parts), "", *_predictions(parts), "", *_check(parts, medians)]
    return "\n".join(lines) + "\n"


def _model(parts: Parts) -> str:
    limit = (
        f"{parts.per_byte / parts.parent_per_byte:.0f} workers"
        if parts.parent_per_byte
        else "more workers than this can tell"
    )
    return (
        "The model: each process's time is a fixed part and one that grows with the bytes, from "
        f"two sizes of the array. The parent: {parts.parent:.2f} s and "
        f"{parts.parent_per_byte * 1e9:.2f} s a GB; a worker: {parts.worker:.2f} s "
        f"(start, imports, table of pieces, first words) and {parts.per_byte * 1e9:.1f} s a GB. A "
        "run takes both fixed parts one after the other, then the longer one of the parent's part "
        f"and of the segments ({SEGMENT / 1e6:.0f} MB) of the busiest worker. One parent keeps "
        f"{limit} busy."
    )


def _predictions(parts: Parts) -> Iterator[str]:
    sizes = {"125 MB": 125e6, "1 GB": 1e9, "10 GB": 1e10, "100 GB": 1e11}
    yield "| cores, seconds by the model (times one core) | " + " | ".join(sizes) + " |"
    yield "| --- |" + " --- |" * len(sizes)
    for cores in CORES:
        taken = {size: parts.seconds(size, cores) for size in sizes.values()}
        cells = (f"{t:.1f} ({parts.seconds(size, 1) / t:.1f})" for size, t in taken.items())
        yield f"| {cores} | " + " | ".join(cells) + " |"


def _check(parts: Parts, medians: dict[tuple[str, int], dict[str, float]]) -> Iterator[str]:
    yield "| check | processor time, measured | model | seconds, measured | model |"
    yield "| --- | --- | --- | --- | --- |"
    for name in ("few", "one JSON array"):
        for cores in (1, 2):
            one = medians[name, cores]
            size = one["bytes"]
            growing = (parts.parent_per_byte + parts.per_byte) * size
            total = parts.parent + parts.worker * cores + growing
            yield (
                f"| {size / 1e6:.0f} MB, {cores} | {one['parent'] + one['workers']:.2f} | "
                f"{total:.2f} | {one['seconds']:.2f} | {parts.seconds(size, cores):.2f} |"
            )
