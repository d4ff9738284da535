r"""``duet inspect --grep``: what a search through joined pieces finds is what decoding finds."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.inspection.search import search
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from tests.chat_models import mt5_like

TEXTS = (
    "",
    " a  b\n c\n\n  d\t\te \n",
    "\n### Human: a\tb",
    "</s> and <extra_id_5>, `code` {x}",
    "naïve — ── 다 \u200b",
    "The answer is 42.",
    "the ANSWER is\n42",
    "\n",
)
PATTERNS = (
    *("answer", "(?i)answer", "is 42", r"is\s42", r"^\s*$", r"\A a", "c\n\n", " c", "</s>", ""),
    *("a  b", r"\n c", "─", "b\n", "zzz", r"(?m)^ ", r"\Z", "d\t", "{x}", "naïve"),
)


def brute_force(table: pa.Table, grep: str, tokenizer: TextTokenizer) -> list[int]:
    rows = table.to_pylist()
    texts = [f"{tokenizer.decode(r['input_ids'])}\n{tokenizer.decode(r['labels'])}" for r in rows]
    return [i for i, text in enumerate(texts) if re.search(grep, text)]


def split_of(tokenizer: TextTokenizer, ids: pa.DataType) -> pa.Table:
    """Each text with each, in two shards of which one starts in the middle of its arrays."""
    encoded = [[*row, tokenizer.eos_id] for row in tokenizer.encode_batch(TEXTS)]
    pairs = [(a, b) for a in encoded for b in encoded]
    columns = [pa.array(side, pa.list_(ids)) for side in zip(*pairs, strict=True)]
    table = pa.table(dict(zip(("input_ids", "labels"), columns, strict=True)))
    return pa.concat_tables([table.slice(0, 20), table.slice(20)])


def check(tokenizer: TextTokenizer, ids: pa.DataType) -> None:
    table = split_of(tokenizer, ids)
    rows = range(table.num_rows)
    for grep in PATTERNS:
        expected = brute_force(table, grep, tokenizer)
        assert [*search(table, rows, grep, tokenizer)] == expected, grep
        assert [*search(table, rows[::-1], grep, tokenizer)] == expected[::-1], grep


def test_joined_pieces_are_searched_as_texts_are(
    tiny_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tiny_tokenizer, pa.uint16())
    table = split_of(tiny_tokenizer, pa.uint16())
    monkeypatch.delattr(TextTokenizer, "decode")  # which takes most of a minute on 60,000 rows
    assert len([*search(table, range(table.num_rows), "answer", tiny_tokenizer)]) == 15


@pytest.mark.slow
def test_the_real_vocabulary_too(real_tokenizer: TextTokenizer) -> None:
    check(real_tokenizer, pa.uint16())


def test_a_vocabulary_with_bytes_is_decoded(tmp_path: Path) -> None:
    mt5_like(tmp_path, spare=9)
    check(load_tokenizer(str(tmp_path)), pa.int32())
