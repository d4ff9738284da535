"""Makes ``tests/golden/`` anew: after a change of format that is meant. Read the difference!

    python scripts/golden.py

``conversations.json`` and ``model/`` stay as they are; pairs, ids and the finished folder are made.
"""

import json
import shutil
import tempfile
from pathlib import Path

import pipeline
from pipeline.config import PrepareConfig
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from pipeline.tokenizer import load_tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = prepare(Path(temporary))
        shutil.rmtree(GOLDEN / "prepared", ignore_errors=True)
        shutil.copytree(folder, GOLDEN / "prepared")
        rows = golden_rows(folder)
        (GOLDEN / "pairs.txt").write_text(pairs_text(folder, rows), encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for _, row in rows)
        (GOLDEN / "ids.jsonl").write_text(lines, encoding="utf-8")


def prepare(output: Path) -> Path:
    """Prepare the golden conversations, with cuts of every kind."""
    config = PrepareConfig(
        data_path=(str(GOLDEN / "conversations.json"),),
        model_name_or_path=str(GOLDEN / "model"),
        output_dir=str(output),
        model_max_length=240,
        max_target_length=60,
        eval_fraction=0.3,
    )
    folder: Path = pipeline.prepare(config)
    return folder


def golden_rows(folder: Path) -> list[tuple[str, dict[str, object]]]:
    """Return all rows in the order of the input, each with its split."""
    manifest = read_manifest(folder)
    found = [
        (split, {k: row[k] for k in ("conversation_id", "turn", "input_ids", "labels")})
        for split in manifest.splits()
        for row in open_split(folder, manifest, split).to_pylist()
    ]
    records = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
    order = {r["id"]: i for i, r in enumerate(records)}
    return sorted(found, key=lambda item: (order[item[1]["conversation_id"]], item[1]["turn"]))


def pairs_text(folder: Path, rows: list[tuple[str, dict[str, object]]]) -> str:
    """Return the rows as a person reads them; a row that ends in </s> shows it."""
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    text = ""
    for split, row in rows:
        source, target = (
            tokenizer.decode(row[column]) + ("</s>" if row[column][-1] == 1 else "")
            for column in ("input_ids", "labels")
        )
        text += f"=== {row['conversation_id']} turn {row['turn']}, {split}\n"
        text += f"{source}\n--- answer\n{target}\n"
    return text


if __name__ == "__main__":
    main()
