"""Speculation is safe: however a text is cut, the result is that of reading straight through.

The reader's own result for the whole text is the oracle; texts hold what looks like the ends of
records.
"""

import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.config import PrepareConfig
from pipeline.prepare.files import anchors, planning
from pipeline.prepare.files.anchors import choose_anchors, find_anchors, record_after
from pipeline.prepare.files.file_kind import recognize
from pipeline.prepare.files.sources import find_sources
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from tests.conftest import record
from tests.prepare.helpers import contents, cut_at, generated

LOOKS_LIKE_AN_END = [
    '"},{"',
    '"}, {"from": "gpt", "value": "',
    '"}]},\n  {"id": "x_0", "conversations": [{"from": "human", "value": "',
    "\\",
    '\\"',
    "}\n{",
    "[{}]",
    "\u2028",
    "é}",
]


def tricky(draw: random.Random, count: int) -> list[Any]:
    """Return records whose texts look like ends of records; some are parts, repeats, or broken."""
    records = list[Any]()
    for i in range(count):
        texts = [
            " ".join(draw.choices([*LOOKS_LIKE_AN_END, "word", "of", "it"], k=draw.randint(1, 40)))
            for _ in range(draw.choice([2, 2, 4]))
        ]
        kind = draw.randint(0, 9)
        if kind == 0 and records:
            records.append(draw.choice(records))  # a repeat
        elif kind == 1:
            base = f"Site{draw.randint(100, 999)}"
            for n in range(3):
                part = texts[: 2 * (n + 1)][2 * n :] or ["q", "a"]
                records.append(record(f"{base}_{2 * n}", *part))
        elif kind == 2:
            records.append({"id": i, "conversations": [{"from": "alien", "value": texts[0]}]})
        elif kind == 3:
            records.append(record(None, *texts))
        elif kind == 4:
            records.append(
                {"id": f"n{i}", "extra": [record("inner_0", *texts)] * 2} | record("", *texts)
            )
        else:
            records.append(record(f"r{i}", *texts))
    return records


FORMS: dict[str, Callable[[list[Any]], str]] = {
    "array": json.dumps,
    "indented": lambda records: json.dumps(records, indent=2, ensure_ascii=False),
    "lines": lambda records: "\n".join(map(json.dumps, records)),
    "lines with commas": lambda records: ",\n".join(map(json.dumps, records)) + ",\n",
    "arrays behind one another": lambda records: "\n".join(
        json.dumps(records[i : i + 7]) for i in range(0, len(records), 7)
    ),
    "pretty-printed objects": lambda records: "\n".join(json.dumps(r, indent=1) for r in records),
    "data": lambda records: json.dumps({"version": 1, "data": records}),
    "cut": lambda records: json.dumps(records, indent=2)[:-700],
    "one array a line": lambda records: "\n".join(
        json.dumps(r.get("conversations")) for r in records
    ),
    "broken in the middle": lambda records: json.dumps(records, indent=2).replace(
        '"gpt"', '"gpt', 1
    ),
    "broken lines": lambda records: "\n".join(
        json.dumps(r)[: -1 if i % 11 == 5 else None] for i, r in enumerate(records)
    ),
}


def prepared(path: Path | str, model: Path, output: Path, **options: Any) -> Path:
    config = PrepareConfig(
        data_path=(str(path),),
        model_name_or_path=str(model),
        output_dir=str(output),
        model_max_length=128,
        **{"num_workers": 1} | options,
    )
    folder = pipeline.prepare(config)
    assert isinstance(folder, Path)
    return folder


def gist(folder: Path) -> tuple[Any, ...]:
    """Return all that does not depend on where shards are cut."""
    manifest = read_manifest(folder)
    tables = [open_split(folder, manifest, split).to_pylist() for split in manifest.splits()]
    rejected = (folder / "rejected.jsonl").read_bytes()
    return (
        manifest.fingerprint,
        manifest.counts,
        manifest.unused_keys,
        manifest.tokens,
        rejected,
        tables,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "usual",
    [
        1_000,
        pytest.param(3_000, marks=pytest.mark.slow),
        pytest.param(20_000, marks=pytest.mark.slow),
    ],
)
def test_however_a_file_is_cut_its_rows_are_those_of_reading_straight_through(
    tmp_path: Path, tiny_t5: Path, form: str, usual: int
) -> None:
    path = tmp_path / "x.json"
    path.write_text(FORMS[form](tricky(random.Random(usual), 60)), encoding="utf-8")
    whole = gist(prepared(path, tiny_t5, tmp_path / "whole", eval_fraction=0.3))
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, usual)
        cut = prepared(path, tiny_t5, tmp_path / "cut", eval_fraction=0.3)
    assert gist(cut) == whole


@given(
    seed=st.integers(0, 1 << 32), usual=st.integers(1_000, 10_000), form=st.sampled_from([*FORMS])
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path, seed: int, usual: int, form: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = folder / "x.json"
    path.write_text(FORMS[form](tricky(random.Random(seed), 30)), encoding="utf-8")
    whole = gist(prepared(path, tiny_t5, folder / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, usual)
        assert gist(prepared(path, tiny_t5, folder / "cut")) == whole


@pytest.mark.slow
def test_a_string_of_20_megabytes_full_of_record_ends(tmp_path: Path, tiny_t5: Path) -> None:
    text = '"}]},\n {"id": "x_0", "conversations": [{"from": "human", "value": "' * 300_000
    records = [record("a", "q", "a"), record("b", text, "b"), record("c", "q", "c")]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    whole = gist(prepared(path, tiny_t5, tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 1 << 17)
        assert gist(prepared(path, tiny_t5, tmp_path / "cut")) == whole


def test_anchors_are_the_same_whatever_stretches_are_looked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchors, "USUAL", 4_000)
    text = json.dumps(tricky(random.Random(3), 300)).encode()

    def read_at(start: int, size: int) -> bytes:
        return text[start : start + size]

    whole = find_anchors(read_at, 0, len(text), 4_000)
    assert len(whole) > 20
    for size in (999, 7_000, 64_000):
        starts = range(0, len(text), size)
        pieces = [find_anchors(read_at, at, min(at + size, len(text)), 4_000) for at in starts]
        assert [anchor for piece in pieces for anchor in piece] == whole


def test_an_insertion_moves_few_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "MIN", 1_000)
    monkeypatch.setattr(anchors, "USUAL", 4_000)
    records = [record(f"r{i}", f"question {i} " * 9, f"answer {i} " * 9) for i in range(2_000)]
    before = b"".join(json.dumps(r).encode() + b"\n" for r in records[:1_000])
    new = b"".join(json.dumps(record(f"n{i}", "new", "one")).encode() + b"\n" for i in range(10))
    after = b"".join(json.dumps(r).encode() + b"\n" for r in records[1_000:])

    def cuts(text: bytes) -> set[bytes]:
        def read_at(start: int, size: int) -> bytes:
            return text[start : start + size]

        chosen = choose_anchors(find_anchors(read_at, 0, len(text), 4_000))
        found = [record_after(read_at, anchor) for anchor in chosen]
        places = [0, *(place for place in found if place is not None), len(text)]
        return {text[a:b] for a, b in itertools.pairwise(places)}

    old, changed = cuts(before + after), cuts(before + new + after)
    assert len(old) > 40
    assert len(changed - old) <= 3


@pytest.mark.slow
def test_one_worker_and_two_and_three_give_the_same_bytes(tmp_path: Path, tiny_t5: Path) -> None:
    path = tmp_path / "x.json"
    records = [
        *generated(12_000, seed=1),
        *tricky(random.Random(5), 300),
        *generated(9_000, seed=2),
    ]
    path.write_text(json.dumps(records + records[:50]), encoding="utf-8")
    assert path.stat().st_size > 9_000_000, "enough for workers"
    folders = [prepared(path, tiny_t5, tmp_path / str(n), num_workers=n) for n in (1, 2, 3)]
    assert len(read_manifest(folders[0]).shards) > 1
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])


def test_a_cut_in_a_long_conversation_is_made_after_it() -> None:
    """No conversation is joined over a cut where another begins near: none is read twice."""
    parts = [json.dumps(record(f"long_{i}", "q" * 2000, "a" * 2000)) for i in range(1, 200)]
    following = json.dumps(record("other", "q", "a"))
    text = ",".join(["{}", *parts, following]).encode()

    found = record_after(lambda start, size: text[start : start + size], 1)

    assert found == len(text) - len(following)


@pytest.mark.parametrize(
    "text", ['{"text": "x{}y"}\n' * 3000, json.dumps(record("a", "q{}" * 20_000, "a"))]
)
def test_a_packed_text_without_a_place_to_cut_at_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    cut_at(monkeypatch, 1 << 10)
    searches = itertools.count()

    def find(*args: Any) -> Any:
        assert next(searches) < 30, "the same stretch is looked through for ever"
        return find_anchors(*args)

    monkeypatch.setattr(planning, "find_anchors", find)
    (tmp_path / "x.gz").write_bytes(gzip.compress(text.encode(), 0))
    sources = find_sources([str(tmp_path / "x.gz")])
    planner = planning.Planner(sources, recognize(sources, [None]), find, find)
    pieces = [p for s in planner.segments(planning.group_files(sources)) for p in s.pieces]
    assert b"".join(piece.content or b"" for piece in pieces) == text.encode()


def test_a_packed_file_is_cut_like_a_plain_one(tmp_path: Path, tiny_t5: Path) -> None:
    text = json.dumps(generated(3_000, seed=4)).encode()

    def read_at(start: int, size: int) -> bytes:
        return text[start : start + size]

    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 1 << 14)
        last = list(choose_anchors(find_anchors(read_at, 0, len(text), anchors.USUAL)))[-1]
        # Whole, and cut off where what follows the last anchor is too short for a segment.
        for end in (len(text), last + anchors.MIN // 2):
            plain, packed = tmp_path / f"{end}" / "x.json", tmp_path / f"{end}-packed" / "x.json"
            for path, content in ((plain, text[:end]), (packed, gzip.compress(text[:end], 0))):
                path.parent.mkdir()
                path.write_bytes(content)
            folders = [prepared(p, tiny_t5, p.parent / "out") for p in (plain, packed)]
            rows = [shard.rows for shard in read_manifest(folders[0]).shards]
            assert len(rows) > 3
            assert rows == [shard.rows for shard in read_manifest(folders[1]).shards]
