"""The reference's rows of the conversations of a prepared folder, as a folder like it.

FastChat's preprocessing makes them, in its own environment (``reference_side.py``), from the same
records: those of conversations that the prepared folder holds out are held out here, too. Ids are
the reference's own; rows of five tokens or less are left out of training, as it leaves them out.
"""

import dataclasses
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.prepare.encode.segment_encoder import is_eval
from pipeline.prepare.files.json_values import Record
from pipeline.prepare.files.reading import find_files, read_files
from pipeline.store.manifest import FILENAME, Shard, read_manifest, write_manifest
from pipeline.store.shards import ShardWriter, row_schema, write_dataset_dict, write_split

SIDE = Path(__file__).with_name("reference_side.py")
SHORTEST = 6
BYTES = "reference_eval_bytes"
"""In the manifest's counts: the bytes of the text that the labels held out decode to."""
_AT_ONCE = 1000


def first_records(export: Path, count: int | None = None) -> list[Any]:
    """Return the first records that have turns; the reference has no answer to empty ones."""
    found = (f.value for _, f in read_files(find_files([str(export)])) if isinstance(f, Record))
    return list(itertools.islice((r for r in found if r["conversations"]), count))


def reference_folder(python: str, export: Path, tokenizer: str, prepared: Path, to: Path) -> Path:
    """Make the folder ``to``, unless it is there; return it.

    Args:
        python: The interpreter of an environment with ``fschat``.
        export: The records that ``prepared`` was made of, in one file.
        tokenizer: A folder with ``spiece.model``.
        prepared: A prepared folder with a eval split.
        to: Gets splits, manifest and, so that it is complete, the tokenizer of ``prepared``.
    """
    if (to / FILENAME).is_file():
        return to
    shutil.rmtree(to, ignore_errors=True)
    manifest = read_manifest(prepared)
    shutil.copytree(prepared / "tokenizer", to / "tokenizer")
    shutil.copyfile(prepared / "rejected.jsonl", to / "rejected.jsonl")
    splits: dict[str, list[Any]] = {"train": [], "eval": []}
    for record in first_records(export):
        held_out = is_eval(record["id"], manifest.config["eval_fraction"])
        splits["eval" if held_out else "train"].append(record)
    shards, label_bytes = [], 0
    for split, records in splits.items():
        settings = [tokenizer, "--max-length", str(manifest.config["model_max_length"])]
        settings += ["--decode"] if split == "eval" else []
        rows, label_bytes = rows_of(python, records, settings)
        shards.append(write_rows(to, split, rows))
        write_split(to, split, shards[-1:])
    write_dataset_dict(to, list(splits))
    counts = manifest.counts | {BYTES: label_bytes}
    write_manifest(to, dataclasses.replace(manifest, shards=shards, counts=counts))
    return to


def rows_of(python: str, records: list[Any], settings: list[str]) -> tuple[dict[str, Any], int]:
    """Return what the reference makes of records: flat ids and lengths of both sides, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "records.json", Path(folder) / "rows.npz"
        source.write_text(json.dumps(records), encoding="utf-8")
        command = [python, str(SIDE), str(source), *settings, "--rows", str(target)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        with np.load(target) as arrays:
            return dict(arrays), json.loads(done.stdout.splitlines()[-1]).get("label_bytes", 0)


def write_rows(folder: Path, split: str, rows: dict[str, Any]) -> Shard:
    """Write rows as the only shard of a split."""
    (folder / split).mkdir()
    names = ("input_ids", "labels")
    kept = np.ones(len(rows["labels_length"]), bool)
    if split == "train":
        kept = np.minimum(*(rows[f"{name}_length"] for name in names)) >= SHORTEST
    columns = [pa.array(lists(rows[name], rows[f"{name}_length"])) for name in names]
    schema = pa.schema([row_schema(1 << 16).field(name) for name in names])
    table = pa.table(columns, schema=schema).filter(pa.array(kept))
    name = f"{split}/shard-00000.arrow"
    writer = ShardWriter(folder / name, schema)
    for batch in table.to_batches(_AT_ONCE):
        writer.write(batch)
    return Shard(path=name, split=split, **dataclasses.asdict(writer.close()))


def lists(values: npt.NDArray[np.uint16], lengths: Iterable[int]) -> pa.ListArray:
    """Return flat values as lists of given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)
