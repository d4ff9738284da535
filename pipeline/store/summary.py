"""A manifest as a table for people: what was read, what came out, what was left out and why."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.store.manifest import Manifest

_MEANINGS = {
    "answer_cut": "answers cut at the end, without </s>",
    "answer_without_question": "answers without a question before them, left out",
    "broken_json": "rejected: no JSON",
    "broken_parquet": "rejected: Parquet that cannot be read",
    "cut_off": "rejected: the file ends inside a record",
    "duplicate": "conversations left out: exact repeats",
    "empty_answer": "blank answers, left out",
    "header_cut": "pairs whose header was cut to half the room",
    "history_cut": "pairs without their oldest turns",
    "invalid_utf8": "rejected: no UTF-8",
    "no_turns": "rejected: no turns",
    "question_cut": "pairs with the last turn's beginning cut",
    "unknown_role": "rejected: unknown role",
    "wrong_shape": "rejected: wrong shape",
}


def summary(manifest: Manifest, folder: Path) -> str:
    """Return the table, one fact a line."""
    return "\n".join(_lines(manifest, folder))


def _lines(manifest: Manifest, folder: Path) -> Iterator[str]:
    counts, tokens = manifest.counts, manifest.tokens
    for name in ("records", "rejected", "conversations", "pairs"):
        yield table_row(name, counts[name])
    for split in manifest.splits():
        yield table_row(f"  in {split}", manifest.rows(split))
    for reason, count in sorted(counts["reasons"].items()):
        yield table_row(f"  {reason}", count, _MEANINGS.get(reason, ""))
    for column, side in (("input_ids", "encoder"), ("labels", "decoder")):
        spread = ", ".join(f"{name} {value:,}" for name, value in tokens["lengths"][column].items())
        yield table_row(f"{side} tokens", tokens[column], f"a row: {spread}")
    total = tokens["input_ids"] + tokens["labels"]
    yield table_row("unknown tokens", tokens["unknown"], f"{tokens['unknown'] / max(total, 1):.4%}")
    yield f"{'prepared folder':<28}{folder}"


def table_row(name: str, value: int | str, remark: str = "") -> str:
    """Return a line of a table of facts; a number gets its commas."""
    shown = value if isinstance(value, str) else f"{value:,}"
    return f"{name:<28}{shown:>13}  {remark}".rstrip()
