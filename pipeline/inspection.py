"""Shows what a prepared folder holds: its table, some pairs as text, what was left out and why."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.config import InspectConfig
from pipeline.errors import PreparedFolderError
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from pipeline.store.summary import summary
from pipeline.tokenizer import load_tokenizer

_LONGEST_REJECTION = 300


def inspect_prepared(config: InspectConfig) -> Iterator[str]:
    """Yield the lines of a description of a prepared folder.

    Raises:
        PreparedFolderError: The folder is missing, incomplete or damaged.
    """
    folder = Path(config.prepared)
    manifest = read_manifest(folder)
    yield summary(manifest, folder)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    table = open_split(folder, manifest, config.split)
    shown = min(config.rows, table.num_rows)
    for row in np.linspace(0, table.num_rows - 1, shown, dtype=int).tolist():
        values = {name: table[name][row].as_py() for name in table.column_names}
        source, target = values["input_ids"], values["labels"]
        ending = "" if target[-1] == tokenizer.eos_id else " (cut: no </s>)"
        yield ""
        yield (
            f"--- {config.split} row {row}: conversation {values['conversation_id']}, "
            f"turn {values['turn']}; encoder, {len(source)} tokens"
        )
        yield tokenizer.decode(source)
        yield f"--- decoder, {len(target)} tokens{ending}"
        yield tokenizer.decode(target)
    yield from _rejections(folder / "rejected.jsonl", config.rejected)


def _rejections(path: Path, limit: int) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in islice(file, limit)]
    except (OSError, ValueError) as error:
        raise PreparedFolderError(
            "the list of rejected records cannot be read",
            where=path,
            got=error,
            do="run duet prepare again",
        ) from error
    if lines:
        yield ""
        yield f"--- rejected records, the first {len(lines)}; all are in {path}"
    for line in lines:
        what = line.get("record", line.get("text"))
        text = json.dumps(what, ensure_ascii=False) if what is not None else "no text"
        yield (
            f"{line['file']} record {line['position']}: {line['reason']}: {line['detail']}: "
            f"{text[:_LONGEST_REJECTION]}"
        )
