"""``preprocess`` in memory gives the rows that ``prepare`` writes, and touches nothing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.errors import RecordError
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from tests.conftest import SAMPLE


@pytest.fixture(scope="module")
def prepared(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    return pipeline.prepare(
        PrepareConfig(
            data_path=(str(SAMPLE),),
            model_name_or_path=str(tiny_t5),
            output_dir=str(folder),
            join_parts=False,
            dedup=False,
            model_max_length=200,
        )
    )


def load(path: Path, window: int) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.model_max_length = window
    return tokenizer


@pytest.mark.parametrize("stock", [True, False])
def test_the_rows_are_those_of_prepare(prepared: Path, tiny_t5: Path, stock: bool) -> None:
    tokenizer = load(tiny_t5 if stock else prepared / "tokenizer", 200)
    records = json.loads(SAMPLE.read_text(encoding="utf-8"))
    sources = [r for r in records if r["id"] not in ("EzPcKiU_0", "LtHnSvQ_0")]
    before = copy.deepcopy(sources)
    rows = pipeline.preprocess(sources, tokenizer)
    table = open_split(prepared, read_manifest(prepared), "train")
    assert rows["input_ids"] == table["input_ids"].to_pylist()
    assert rows["labels"] == table["labels"].to_pylist()
    assert sources == before


def test_a_source_may_be_turns_alone(prepared: Path) -> None:
    tokenizer = load(prepared / "tokenizer", 512)
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a {b}\n"}]
    rows = pipeline.preprocess([turns], tokenizer)
    assert tokenizer.decode(rows["labels"][0], skip_special_tokens=True) == "a {b}\n"
    assert rows == pipeline.preprocess([{"conversations": turns}], tokenizer)


def test_a_source_that_is_no_conversation_is_one_clear_error(prepared: Path) -> None:
    with pytest.raises(RecordError, match=r"where: sources\[0\]; got: wrong_shape"):
        pipeline.preprocess([[{"from": "human"}]], load(prepared / "tokenizer", 512))


def test_the_rules_are_those_of_prepare(tiny_t5: Path, tmp_path: Path) -> None:
    """Other forms, tools, weights, blank system turns and answers of unknown tokens."""
    sources = [
        {"question": "q", "answer": "a", "tools": [{"name": "f"}]},
        {"messages": [{"role": "system", "content": " "}, {"role": "human ", "content": ["q"]},
                      {"role": "AI", "content": "no", "weight": 0}, {"role": "ai", "text": "yes"}]},
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "\U00013000"}],
    ]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps([*sources[:2], {"conversations": sources[2]}]))
    folder = pipeline.prepare(
        PrepareConfig(
            data_path=(str(tmp_path / "x.json"),),
            model_name_or_path=str(tiny_t5),
            output_dir=str(tmp_path / "out"),
            model_max_length=200,
        )
    )
    table = open_split(Path(folder), read_manifest(Path(folder)), "train").to_pydict()
    assert table["turn"] == [1, 2]
    found = pipeline.preprocess(sources, load(Path(folder) / "tokenizer", 200))
    assert found == {name: table[name] for name in ("input_ids", "labels")}
