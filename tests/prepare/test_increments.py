"""Nearly the same data again: few chunks are made anew, and the bytes are a cold run's."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.store import chunk_cache
from tests.conftest import record
from tests.prepare.helpers import contents, cut_at, generated, leftovers, write

Prepare = Callable[..., Path]
MOST_ANEW = 8
"""A third of what there is; five is the most that was seen. Cuts meet again after a few."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(monkeypatch)


@pytest.fixture
def prepare(tiny_t5: Path, tmp_path: Path) -> Prepare:
    """Return a function that prepares some paths below the test's folder."""

    def run(*paths: Path, output: str = "processed", **options: Any) -> Path:
        config = PrepareConfig(
            data_path=tuple(map(str, paths)),
            model_name_or_path=str(tiny_t5),
            output_dir=str(tmp_path / output),
            **{"num_workers": 1, "eval_fraction": 0.2, "model_max_length": 128} | options,
        )
        folder = pipeline.prepare(config)
        assert isinstance(folder, Path)
        return folder

    return run


def chunks(output: Path) -> set[str]:
    return {path.parent.name for path in (output / ".chunks").glob("*/*/chunk.json")}


def write_array(path: Path, records: list[Any]) -> Path:
    path.write_text(json.dumps(records, indent=2), encoding="utf-8")
    return path


def write_one_line(path: Path, records: list[Any]) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def changed(records: list[Any], draw: random.Random, step: int) -> list[Any]:
    """Return the records after one insertion, deletion or change of up to five of them."""
    at, count = draw.randrange(len(records)), draw.randint(1, 5)
    new = generated(count, 1000 * step + draw.randrange(1000))
    kind = draw.choice(["insert", "delete", "change"])
    if kind == "insert":
        return records[:at] + new + records[at:]
    return records[:at] + (new if kind == "change" else []) + records[at + count :]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("nameless", [False, True], ids=["ids", "nameless"])
@pytest.mark.parametrize("form", [write, write_array, write_one_line])
def test_random_changes_make_few_chunks_anew_and_give_a_cold_runs_bytes(
    prepare: Prepare, tmp_path: Path, form: Callable[..., Path], nameless: bool, seed: int
) -> None:
    draw = random.Random(seed)
    records, path = generated(200, seed), tmp_path / "x.json"
    for step in range(6):
        shown = [{"conversations": r["conversations"]} for r in records] if nameless else records
        form(path, shown)
        before = chunks(tmp_path / "processed")
        warm = prepare(path)
        anew = chunks(tmp_path / "processed") - before
        if step == 0:
            assert len(anew) > 2 * MOST_ANEW
        else:
            assert len(anew) <= MOST_ANEW
        assert contents(warm) == contents(prepare(path, output=f"cold{step}"))
        records = changed(records, draw, step)
    assert leftovers(tmp_path / "processed") == []


@pytest.mark.parametrize("change", ["moved to the end", "repeated", "other file first"])
def test_other_changes_give_what_a_cold_run_gives(
    prepare: Prepare, tmp_path: Path, change: str
) -> None:
    records = generated(120, 3)
    paths = [write(tmp_path / "x.jsonl", records)]
    prepare(*paths)
    before = chunks(tmp_path / "processed")
    if change == "moved to the end":
        write(paths[0], records[40:] + records[:40])
    elif change == "repeated":
        write(paths[0], records[:60] + records[10:20] + records[60:])
    else:
        paths.insert(0, write(tmp_path / "a.jsonl", generated(10, 4)))
    warm = prepare(*paths)
    anew = chunks(tmp_path / "processed") - before
    assert len(anew) <= len(before) / 2
    assert contents(warm) == contents(prepare(*paths, output="cold"))


@pytest.mark.parametrize(
    "options", [{"model_max_length": 100}, {"max_target_length": 9}, {"eval_fraction": 0.5}]
)
def test_options_that_decide_the_rows_share_no_chunk(
    prepare: Prepare, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write(tmp_path / "x.jsonl", generated(60, 5))
    prepare(path)
    before = chunks(tmp_path / "processed")
    second = prepare(path, **options)
    assert len(chunks(tmp_path / "processed")) == 2 * len(before)
    assert contents(second) == contents(prepare(path, output="cold", **options))


def test_of_what_is_kept_only_what_is_published_is_read(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk without its repeats is kept beside the whole one, which nobody needs then."""
    records = generated(30, 7)
    path = write(tmp_path / "x.jsonl", [*records, *records[::2], *records])
    prepare(path)
    hashed, hash_file = list[Path](), chunk_cache.sha256_of_file
    monkeypatch.setattr(
        chunk_cache, "sha256_of_file", lambda path: hashed.append(path) or hash_file(path)
    )
    folder = prepare(path, write(tmp_path / "y.jsonl", [record("new", "the of", "and a")]))
    published = len(list(folder.glob("*/*.arrow")))
    assert 0 < len([p for p in hashed if p.suffix == ".arrow"]) <= published


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: os.truncate(path, 10)])
@pytest.mark.parametrize("pattern", ["*/*/train.arrow", "*/*/chunk.json"])
def test_damaged_chunks_are_made_again(
    prepare: Prepare, tmp_path: Path, damage: Callable[[Path], object], pattern: str
) -> None:
    records = generated(60, 7)
    path = write(tmp_path / "x.jsonl", records)
    prepare(path)
    step = 1 if damage is flip else 2  # a chunk, and what it is without repeats: both or one
    damaged = sorted((tmp_path / "processed" / ".chunks").glob(pattern))[::step]
    assert len(damaged) > 2
    for file in damaged:
        damage(file)
    write(path, [*records, record("new", "the of", "and a")])
    warm = prepare(path)
    assert contents(warm) == contents(prepare(path, output="cold"))
