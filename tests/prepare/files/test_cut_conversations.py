"""Conversations whose parts lie in several segments are joined as if one segment held them all."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.prepare.files import tables
from tests.conftest import record
from tests.prepare.files.test_segments import gist, prepared
from tests.prepare.helpers import contents, cut_at


def parts(draw: random.Random, count: int) -> list[Any]:
    """Return records of which many go on with the one before, or seem to, or repeat one."""
    records = list[Any]()
    while len(records) < count:
        base = draw.choice(["QWJhYvA", "identity", f"x{draw.randrange(9)}AbCd"])
        turns = [f"t{draw.randrange(4)}" for _ in range(draw.randint(2, 14))]
        at = 0
        while at < len(turns):
            size = draw.choice([1, 2, 2, 4, 6])
            texts = list(turns[at : at + size])
            if draw.random() < 0.1:
                texts[0] = "another"
            roles = ("gpt", "human") if at % 2 else ("human", "gpt")
            records.append(record(f"{base}_{at}", *texts, roles=roles))
            at += draw.choice([size, size, size, max(size - 1, 1), 1, size + 2])
        if draw.random() < 0.3:
            records.append(draw.choice(records))
        if draw.random() < 0.3:
            records.append({"id": f"{base}_2", "conversations": []})
    return records


@given(seed=st.integers(0, 1 << 32), usual=st.integers(100, 1_500), is_table=st.booleans())
@example(seed=3699971716, usual=499, is_table=True)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_parts_in_many_files_are_joined_as_in_one_segment(
    tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path, seed: int, usual: int, is_table: bool
) -> None:
    draw, folder = random.Random(seed), tmp_path_factory.mktemp("parts")
    data, records, at = folder / "data", parts(draw, 30), 0
    data.mkdir()
    if is_table:
        turns = [r["conversations"] for r in records]
        table = pa.table({"id": [r["id"] for r in records], "conversations": turns})
        pq.write_table(table, data / "x.parquet", row_group_size=2)
    while at < len(records) and not is_table:
        size = draw.randint(1, 4)
        (data / f"{at:03d}.json").write_text(json.dumps(records[at : at + size]))
        at += size
    options = {"eval_fraction": draw.choice([0.0, 0.1]), "dedup": draw.random() < 0.8}
    whole = gist(prepared(data, tiny_t5, folder / "whole", **options))
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, usual)
        assert gist(prepared(data, tiny_t5, folder / "cut", **options)) == whole


@pytest.mark.parametrize("what", ["a repeat's first place", "a conversation's first part"])
def test_what_stood_around_an_unchanged_file_is_not_kept_with_it(
    tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The first file held what the second one repeats, or goes on with; then it does not."""
    cut_at(monkeypatch, 100)
    data = tmp_path / "data"
    data.mkdir()
    other = record("other", "what is this?", "It is a sentence of some length, so to speak. " * 4)
    begun = record("QWJhYvA_0", "who are you?", "I am the one who answers.")
    if what.startswith("a repeat"):
        second = [begun, record("last", "and then?", "Then it ends.")]
    else:
        second = [record("QWJhYvA_2", "and you?", "I ask."), record("last", "then?", "It ends.")]

    def write(name: str, records: list[Any]) -> None:
        (data / name).write_text(json.dumps(records))
        long_ago = time.time() - 1_000
        os.utime(data / name, (long_ago, long_ago))

    write("a.json", [other, begun])
    write("b.json", second)
    before = prepared(data, tiny_t5, tmp_path / "out")
    write("a.json", [other])
    warm = prepared(data, tiny_t5, tmp_path / "out")
    cold = prepared(data, tiny_t5, tmp_path / "cold")
    assert gist(before) != gist(cold)
    assert contents(warm) == contents(cold)


def test_few_segments_are_read_twice_where_every_cut_is_in_a_conversation(
    tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(monkeypatch, 1_000)
    table = [record(f"QWJhYvA_{2 * i}", f"q {i} " * 20, f"a {i} " * 20) for i in range(60)]
    turns = [r["conversations"] for r in table]
    columns = {"id": [r["id"] for r in table], "conversations": turns}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=5)
    rows, read_rows = list[int](), tables.read_rows

    def counted(path: Any, kind: Any, start: int, end: int) -> Any:
        for found in read_rows(path, kind, start, end):
            rows.append(found.position)
            yield found

    monkeypatch.setattr(tables, "read_rows", counted)
    folder = prepared(path, tiny_t5, tmp_path / "out")
    assert gist(folder)[1]["conversations"] == 1
    assert len(rows) == 60
