"""Shows what a prepared folder holds: its table, some pairs as text, what was left out and why."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import InspectConfig
from pipeline.store.manifest import Manifest, read_manifest
from pipeline.store.rejected import FILENAME, rejection_kinds
from pipeline.store.shards import open_split
from pipeline.store.summary import summary
from pipeline.tokenizer import load_tokenizer
from pipeline.units import spread

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
    for row in spread(table.num_rows, config.rows):
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
    yield from _read_as(manifest)
    yield from _rejections(folder, config.rejected)


def _read_as(manifest: Manifest) -> Iterator[str]:
    """Yield what each file was read as, and which keys nobody read."""
    yield ""
    yield "--- what was read"
    for source in manifest.sources:
        others = source.get("forms", {})
        as_turns = source["records"] - source["rejected"] - sum(others.values())
        forms = {"lists of turns": as_turns, **others}
        shown = ", ".join(f"{n:,} as {form}" for form, n in forms.items() if n) or "nothing"
        yield f"{source['name']} ({source['format']}): {shown}; {source['rejected']:,} rejected"
    for kind, keys in manifest.unused_keys.items():
        names = ", ".join(f"{name} {n:,}" for name, n in sorted(keys.items(), key=_by_count))
        yield f"keys of {kind} that nobody reads: {names or 'none'}"
    yield f"records joined to the conversation that they go on with: {manifest.counts['joined']:,}"


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _rejections(folder: Path, limit: int) -> Iterator[str]:
    kinds = rejection_kinds(folder)
    if kinds and limit:
        yield ""
        yield f"--- the commonest rejections, one of each; all are in {folder / FILENAME}"
    for kind in kinds[:limit]:
        example = kind.example
        what = example.get("record", example.get("text"))
        text = json.dumps(what, ensure_ascii=False) if what is not None else "no text"
        yield (
            f"{kind.count:,} × {kind.reason}: {kind.detail}; {example['file']} record "
            f"{example['position']}: {text[:_LONGEST_REJECTION]}"
        )
