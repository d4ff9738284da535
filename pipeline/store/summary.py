"""A manifest as a table for people: what was read, what came out, what was left out and why."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.store.manifest import Manifest

MEANINGS = {
    "answer_cut": "answers cut at the end, without </s>",
    "answer_without_question": "answers without a question before them, left out",
    "broken_arrow": "rejected: Arrow IPC that cannot be read",
    "broken_json": "rejected: not JSON",
    "broken_parquet": "rejected: Parquet that cannot be read",
    "cut_off": "rejected: the file ends inside a record",
    "duplicate": "conversations left out: exact repeats",
    "empty_answer": "blank answers, left out",
    "header_cut": "pairs whose header was cut",
    "history_cut": "pairs without their oldest turns",
    "invalid_utf8": "rejected: not UTF-8",
    "looks_like_html": "texts that look like HTML; --clean-html makes Markdown of them",
    "lost_characters": "answers of which the tokenizer loses characters",
    "lost_newlines": "answers of which the tokenizer loses line ends",
    "lost_spaces": "answers of which the tokenizer loses runs of spaces, or tabs",
    "no_pair": "conversations without a pair",
    "no_turns": "rejected: no turns",
    "not_text": "rejected: not text alone, but images, audio or other files",
    "not_trained": "answers with weight 0, history only",
    "opening_dropped": "pairs without what the assistant says before the first question",
    "question_cut": "pairs with the last turn's beginning cut",
    "question_without_answer": "questions without an answer",
    "reasoning_content": "turns with reasoning, which is left out",
    "template_refused": "answers left out: the model's chat template refuses what is before them",
    "thinking": "turns with reasoning, which is left out",
    "unknown_answer": "answers of unknown tokens only, left out",
    "unknown_role": "rejected: unknown role",
    "wrong_shape": "rejected: wrong shape",
}

_COUNTS = {
    "records": "",
    "rejected": "",
    "joined": "parts joined to the part before them",
    "conversations": "",
    "pairs": "history and question, and the answer",
}
_MOST_SHOWN = 20  # of lost characters, of other keys


def summary(manifest: Manifest, folder: Path) -> str:
    """Return the table, one fact a line."""
    return "\n".join(_lines(manifest, folder))


def _lines(manifest: Manifest, folder: Path) -> Iterator[str]:
    counts, tokens = manifest.counts, manifest.tokens
    if manifest.files_passed_over:
        yield table_row("files skipped", manifest.files_passed_over, "no records in them")
    for name, remark in _COUNTS.items():
        yield table_row(name, counts[name], remark)
    for split in manifest.splits():
        yield table_row(f"  in {split}", manifest.rows(split))
    for reason, count in sorted(counts["reasons"].items()):
        yield table_row(f"  {reason}", count, MEANINGS.get(reason, ""))
    for column, side in (("input_ids", "encoder"), ("labels", "decoder")):
        spread = ", ".join(f"{name} {value:,}" for name, value in tokens["lengths"][column].items())
        yield table_row(f"{side} tokens", tokens[column], f"a row: {spread}")
    total = tokens["input_ids"] + tokens["labels"]
    yield table_row("unknown tokens", tokens["unknown"], f"{tokens['unknown'] / max(total, 1):.4%}")
    affected = tokens["answers_with_unknown"]
    if affected:
        lost = [character for character, _ in tokens["lost"][:_MOST_SHOWN]]
        commonest = " ".join(c if c.isprintable() else ascii(c)[1:-1] for c in lost)
        yield table_row("answers that lost characters", affected, f"commonest: {commonest}")
    for kind, keys in manifest.unused_keys.items():
        if keys:
            shown = sorted(keys, key=lambda name: -keys[name])[:_MOST_SHOWN]
            names = ", ".join(map(repr, shown)) + (", …" if len(shown) < len(keys) else "")
            yield table_row("other keys", len(keys), f"of {kind}, not used: {names}")
    yield f"{'prepared folder':<28}{folder}"


def table_row(name: str, value: int | str, remark: str = "") -> str:
    """Return a line of a table of facts; a number gets its commas."""
    shown = value if isinstance(value, str) else f"{value:,}"
    return f"{name:<28}{shown:>13}  {remark}".rstrip()
