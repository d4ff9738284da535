"""Nearly the same data again: parts are found, linked, mended; the bytes are a cold run's."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.errors import InputError
from pipeline.prepare.engines.local import LocalEngine
from pipeline.store.chunk_cache import PartInfo, PartStore, PartWriter, iterate_parts
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from tests.conftest import SAMPLE, record
from tests.prepare.helpers import (
    USUAL_SIZES,
    WORDS,
    contents,
    cut_at,
    generated,
    leftovers,
    visible,
    write,
)

Prepare = Callable[..., Path]


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


def inodes(folder: Path) -> dict[str, int]:
    """Return the inode of each Arrow file below a folder."""
    return {str(p.relative_to(folder)): p.stat().st_ino for p in sorted(folder.rglob("*.arrow"))}


def kept(tmp_path: Path, output: str = "processed") -> dict[str, int]:
    return inodes(tmp_path / output / ".parts")


def forget(folder: Path) -> None:
    """Take a prepared folder away, and leave its parts."""
    shutil.rmtree(folder)


def test_new_records_in_the_middle_reuse_all_but_few_parts(
    prepare: Prepare, tmp_path: Path
) -> None:
    old, new = generated(200, 1), generated(2, 2)
    first = prepare(write(tmp_path / "x.jsonl", old))
    before, untouched = kept(tmp_path), contents(first)
    assert len(list(iterate_parts(tmp_path / "processed" / ".parts"))) >= 15
    second = prepare(write(tmp_path / "x.jsonl", [*old[:100], *new, *old[100:]]))
    after = kept(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) - len(before) <= 6  # three parts with both splits
    assert second != first
    assert contents(first) == untouched
    used = set(inodes(second).values())
    assert len(used & set(before.values())) >= len(before) - 6
    cold = prepare(tmp_path / "x.jsonl", output="cold")
    assert cold.name == second.name
    assert contents(second) == contents(cold)
    assert leftovers(tmp_path / "processed") == []


@pytest.mark.parametrize("change", ["removed", "changed", "moved to the end", "other file first"])
def test_other_changes_give_what_a_cold_run_gives(
    prepare: Prepare, tmp_path: Path, change: str
) -> None:
    records = generated(120, 3)
    paths = [write(tmp_path / "x.jsonl", records)]
    prepare(*paths)
    before = kept(tmp_path)
    if change == "removed":
        write(paths[0], records[:50] + records[55:])
    elif change == "changed":
        write(paths[0], [*records[:50], record("other", "q", "a"), *records[51:]])
    elif change == "moved to the end":
        write(paths[0], records[40:] + records[:40])
    else:
        paths.insert(0, write(tmp_path / "a.jsonl", generated(10, 4)))
    warm, cold = prepare(*paths), prepare(*paths, output="cold")
    assert contents(warm) == contents(cold)
    used = set(inodes(warm).values())
    assert len(used & set(before.values())) >= len(before) / 2


@pytest.mark.parametrize("options", [{"dedup": False}, {"join_parts": False}])
def test_options_that_leave_a_parts_rows_alone_share_it(
    prepare: Prepare, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write(tmp_path / "x.jsonl", generated(60, 5))
    first = prepare(path)
    second = prepare(path, **options)
    assert first != second
    assert list(inodes(first).values()) == list(inodes(second).values())


@pytest.mark.parametrize(
    "options", [{"model_max_length": 100}, {"max_target_length": 9}, {"eval_fraction": 0.5}]
)
def test_options_that_decide_the_rows_share_no_part(
    prepare: Prepare, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write(tmp_path / "x.jsonl", generated(60, 5))
    first, second = prepare(path), prepare(path, **options)
    assert not set(inodes(first).values()) & set(inodes(second).values())


def test_shards_are_the_parts_themselves(prepare: Prepare, tmp_path: Path) -> None:
    folder = prepare(write(tmp_path / "x.jsonl", generated(80, 6)))
    of_parts = kept(tmp_path)
    assert sorted(inodes(folder).values()) == sorted(of_parts.values())
    assert all(path.stat().st_nlink == 2 for path in folder.rglob("*.arrow"))


def test_without_the_parts_the_folder_is_whole(prepare: Prepare, tmp_path: Path) -> None:
    import datasets

    path = write(tmp_path / "x.jsonl", generated(60, 7))
    folder = prepare(path)
    before = contents(folder)
    shutil.rmtree(tmp_path / "processed" / ".parts")
    assert contents(folder) == before
    manifest = read_manifest(folder)
    for split in ("train", "eval"):
        assert open_split(folder, manifest, split).num_rows == manifest.rows(split) > 0
    loaded = datasets.load_from_disk(str(folder))
    assert {name: len(rows) for name, rows in loaded.items()} == {
        name: manifest.rows(name) for name in ("train", "eval")
    }
    assert prepare(path) == folder
    forget(folder)
    assert contents(prepare(path)) == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda part: flip(part / "train.arrow"),
    "cut off": lambda part: os.truncate(part / "train.arrow", 100),
    "a file missing": lambda part: (part / "train.arrow").unlink(),
    "no part.json": lambda part: (part / "part.json").unlink(),
    "gone": lambda part: shutil.rmtree(part),
    "half a part.json": lambda part: os.truncate(part / "part.json", 40),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_made_again(
    prepare: Prepare, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", generated(60, 8))
    folder = prepare(path)
    before, ids = contents(folder), kept(tmp_path)
    forget(folder)
    parts = list(iterate_parts(tmp_path / "processed" / ".parts"))
    chosen = next(p for p in parts[len(parts) // 2 :] if (p / "train.arrow").exists())
    DAMAGE[damage](chosen)
    capsys.readouterr()
    assert contents(prepare(path)) == before
    notes = [line for line in capsys.readouterr().err.splitlines() if "part was damaged" in line]
    assert len(notes) == (damage == "a flipped bit")
    assert all(str(chosen) in line for line in notes)
    after = kept(tmp_path)
    assert after.keys() == ids.keys()
    changed = {Path(name).parent.name for name in ids if ids[name] != after[name]}
    assert changed <= {chosen.name}
    assert leftovers(tmp_path / "processed") == []


def test_every_part_damaged_gives_the_same_bytes(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", generated(60, 8))
    folder = prepare(path)
    before = contents(folder)
    forget(folder)
    damaged = list((tmp_path / "processed" / ".parts").rglob("*.arrow"))
    for file in damaged:
        flip(file)
    capsys.readouterr()
    assert contents(prepare(path)) == before
    notes = [line for line in capsys.readouterr().err.splitlines() if "part was damaged" in line]
    assert len(set(notes)) == len({file.parent for file in damaged})


def test_a_part_that_goes_while_it_is_looked_at_is_made_again(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.jsonl", generated(60, 9))
    folder = prepare(path)
    before = contents(folder)
    forget(folder)
    find = PartStore.find

    def find_and_prune(store: PartStore, key: str) -> Any:
        found = find(store, key)
        shutil.rmtree(store.path(key), ignore_errors=True)
        return found

    monkeypatch.setattr(PartStore, "find", find_and_prune)
    assert contents(prepare(path)) == before


def test_parts_that_go_right_after_they_are_made_are_in_the_folder(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``duet cache prune`` may run at any time, and takes what no prepared folder holds yet."""
    path = write(tmp_path / "x.jsonl", generated(30, 9))
    publish = PartWriter.publish

    def publish_and_prune(writer: PartWriter, *args: Any) -> PartInfo:
        info = publish(writer, *args)
        shutil.rmtree(tmp_path / "processed" / ".parts")
        return info

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "publish", publish_and_prune)
        pruned = prepare(path)
    assert kept(tmp_path) == {}
    assert len(inodes(pruned)) > 3
    assert contents(pruned) == contents(prepare(path, output="cold"))


def test_one_two_and_three_workers_give_the_same_bytes(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = LocalEngine.start

    def note_start(engine: LocalEngine) -> None:
        started.append(engine._workers)
        start(engine)

    monkeypatch.setattr(LocalEngine, "start", note_start)
    path = write(tmp_path / "x.jsonl", generated(60, 10))
    one, two, three = (prepare(path, output=str(n), num_workers=n) for n in (1, 2, 3))
    assert {2, 3} <= set(started)
    assert contents(one) == contents(two) == contents(three)
    # And so do parts: those of one are those of another.
    assert contents(tmp_path / "1" / ".parts") == contents(tmp_path / "2" / ".parts")
    assert contents(tmp_path / "1" / ".parts") == contents(tmp_path / "3" / ".parts")


def test_parts_that_repeat_are_made_and_linked_in_order(prepare: Prepare, tmp_path: Path) -> None:
    """The same conversations over and over, each time cut into the same parts."""
    records = generated(40, 11)
    path = write(tmp_path / "x.jsonl", records * 3)
    options = {"dedup": False, "eval_fraction": 0.0}
    one = prepare(path, **options)
    parts = len(list(iterate_parts(tmp_path / "processed" / ".parts")))
    assert len(inodes(one)) > 1.5 * parts
    names = open_split(one, read_manifest(one), "train")["conversation_id"].to_pylist()
    assert list(dict.fromkeys(names)) == [r["id"] for r in records]
    assert len(names) == 2 * len(records) * 3
    two = prepare(path, output="two", num_workers=2, **options)
    assert contents(one) == contents(two)
    forget(one)
    assert contents(prepare(path, **options)) == contents(two)


def test_one_part_again_and_again_with_workers(prepare: Prepare, tmp_path: Path) -> None:
    """Several workers get the very same part at the same moment."""
    path = write(tmp_path / "x.jsonl", [record("a", "q " * 12_000, "a")] * 12)
    options = {"dedup": False, "eval_fraction": 0.0}
    one = prepare(path, **options)
    assert len(list(iterate_parts(tmp_path / "processed" / ".parts"))) == 1
    assert len(inodes(one)) == 12
    two = prepare(path, output="two", num_workers=3, **options)
    assert contents(one) == contents(two)


def test_one_part_again_and_again_found_at_once(prepare: Prepare, tmp_path: Path) -> None:
    """Several threads look at the very same part at the same moment."""
    path = write(tmp_path / "x.jsonl", [record("a", "q " * 12_000, "a")] * 40)
    options = {"dedup": False, "eval_fraction": 0.0, "num_workers": 8}
    (tmp_path / "one").mkdir()
    prepare(write(tmp_path / "one" / "x.jsonl", [record("a", "q " * 12_000, "a")]), **options)
    assert len(kept(tmp_path)) == 1
    folder = prepare(path, **options)
    assert set(inodes(folder).values()) == set(kept(tmp_path).values())
    assert len(inodes(folder)) == 40


@pytest.mark.parametrize("records", [[], [{"broken": True}] * 30])
def test_no_conversation_is_an_error_and_leaves_nothing(
    prepare: Prepare, tmp_path: Path, records: list[Any]
) -> None:
    with pytest.raises(InputError, match="no pair is left"):
        prepare(write(tmp_path / "x.jsonl", records))
    output = tmp_path / "processed"
    assert visible(output) == []
    assert leftovers(output) == []
    assert contents(output / ".parts") == {}


def test_a_file_of_which_all_is_rejected_beside_one_with_pairs(
    prepare: Prepare, tmp_path: Path
) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"broken": i} for i in range(50)])
    good = write(tmp_path / "good.jsonl", generated(20, 12))
    alone, both = prepare(good), prepare(bad, good)
    assert alone != both
    assert list(inodes(alone).values()) == list(inodes(both).values())
    assert [s["rejected"] for s in read_manifest(both).sources] == [50, 0]
    assert len((both / "rejected.jsonl").read_text().splitlines()) == 50
    assert contents(both) == contents(prepare(bad, good, output="cold", num_workers=2))


def test_parts_without_a_pair_are_kept_and_give_no_shard(prepare: Prepare, tmp_path: Path) -> None:
    lonely = [record(f"n{i}", f"nobody answers question {i} " * 10) for i in range(100)]
    records = [*generated(20, 13), *lonely, *generated(20, 14)]
    path = write(tmp_path / "x.jsonl", records)
    folder = prepare(path)
    parts = list(iterate_parts(tmp_path / "processed" / ".parts"))
    empty = [part for part in parts if not list(part.glob("*.arrow"))]
    assert empty, "no part is without a pair"
    manifest = read_manifest(folder)
    assert manifest.counts["conversations"] == 140
    assert manifest.counts["pairs"] == 80
    assert all(shard.rows for shard in manifest.shards)
    before, ids = contents(folder), kept(tmp_path)
    forget(folder)
    assert contents(prepare(path)) == before
    assert kept(tmp_path) == ids
    assert contents(prepare(path, output="two", num_workers=2)) == before


def test_what_only_answers_nothing_is_counted_again_from_the_parts(
    prepare: Prepare, tmp_path: Path
) -> None:
    first = prepare(SAMPLE)
    reasons = read_manifest(first).counts["reasons"]
    assert reasons["answer_without_question"] == 1
    forget(first)
    assert read_manifest(prepare(SAMPLE)).counts["reasons"] == reasons


def test_without_hard_links_the_bytes_are_the_same(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.jsonl", generated(30, 15))
    linked = prepare(path)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    for _ in range(2):
        copied = prepare(path, output="copied")
        assert contents(copied) == contents(linked)
        assert not set(inodes(copied).values()) & set(kept(tmp_path, "copied").values())
        forget(copied)


def test_records_without_an_id_share_all_parts_but_those_of_the_new_ones(
    prepare: Prepare, tmp_path: Path
) -> None:
    old = [{"conversations": r["conversations"]} for r in generated(80, 16)]
    path = tmp_path / "x.jsonl"
    first = prepare(write(path, old))
    ids = inodes(first)
    second = prepare(write(path, [*old[:60], {"broken": 1}, *old[60:]]))
    shared = set(ids.values()) & set(inodes(second).values())
    assert len(shared) >= len(ids) - 2
    assert contents(second) == contents(prepare(path, output="cold"))


@pytest.mark.slow
def test_a_conversation_of_30_megabytes_is_a_part_of_its_own(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(monkeypatch, USUAL_SIZES)
    draw = random.Random(17)
    text = " ".join(draw.choices([*WORDS, *(str(n) for n in range(5_000))], k=1_500_000))
    turns = [text[at : at + 50_000] for at in range(0, len(text), 50_000)]
    while sum(map(len, turns)) < 30_000_000:
        turns += turns
    small = generated(50, 18)
    path = write(tmp_path / "x.jsonl", [*small[:25], record("long", *turns), *small[25:]])
    assert path.stat().st_size > 30_000_000
    one = prepare(path, model_max_length=2048, eval_fraction=0.0)
    manifest = read_manifest(one)
    assert manifest.counts["conversations"] == 51
    assert manifest.counts["pairs"] == len(turns) // 2 + 100
    names = open_split(one, manifest, "train")["conversation_id"].to_pylist()
    assert list(dict.fromkeys(names)) == [*(r["id"] for r in small[:25]), "long"] + [
        r["id"] for r in small[25:]
    ]
    options = {"model_max_length": 2048, "eval_fraction": 0.0, "num_workers": 2}
    assert contents(prepare(path, output="two", **options)) == contents(one)


@pytest.mark.slow
def test_many_random_changes_each_give_what_a_cold_run_gives(
    prepare: Prepare, tmp_path: Path
) -> None:
    draw = random.Random(19)
    records = generated(100, 19)
    for step in range(12):
        at = draw.randrange(len(records))
        if step % 3 == 0:
            records[at:at] = generated(draw.randint(1, 5), 100 + step)
        elif step % 3 == 1:
            del records[at : at + draw.randint(1, 5)]
        else:
            other = draw.randrange(len(records))
            records[at], records[other] = records[other], records[at]
        path = write(tmp_path / "x.jsonl", records)
        workers = 1 + step % 2
        warm = prepare(path, num_workers=workers)
        cold = prepare(path, output=f"cold{step}", num_workers=2 - step % 2)
        assert contents(warm) == contents(cold)
