"""Parts that are kept: whole or not there, and a damaged or foreign one is never taken."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.store import chunk_cache as parts_module
from pipeline.store.chunk_cache import PART_SCHEMA, PartInfo, PartStore, iterate_parts
from pipeline.store.shards import _HashingFile, row_schema

SCHEMA = row_schema(1000)
KEY, OTHER = "3f" + "0" * 22, "3f" + "1" * 22
LENGTHS = {"input_ids": [0, 0, 2], "labels": [0, 2]}


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    (tmp_path / "run").mkdir()
    return PartStore(tmp_path / ".parts", tmp_path / "run")


def rows(*names: str) -> pa.RecordBatch:
    columns = [[[5, 6]] * len(names), [[7]] * len(names), list(names), [1] * len(names)]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def make(store: PartStore, key: str = KEY, *, evaluated: bool = True) -> PartInfo:
    with store.new(key, SCHEMA) as writer:
        writer.write("train", rows("a", "b"))
        writer.write("train", rows("c"))
        if evaluated:
            writer.write("eval", rows("d"))
        return writer.publish({"duplicate": 1}, 2, LENGTHS)


def everything(folder: Path) -> list[str]:
    """Return all files but those that a run has pinned."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "pinned"]
    return sorted(str(p.relative_to(folder)) for p in files)


def test_a_part_is_there_after_publish_and_not_before(store: PartStore, tmp_path: Path) -> None:
    assert store.find(KEY) is None
    with store.new(KEY, SCHEMA) as writer:
        writer.write("train", rows("a"))
        assert store.find(KEY) is None
        assert not store.path(KEY).exists()
        info = writer.publish({}, 0, LENGTHS)
        assert store.find(KEY) == info
    assert store.path(KEY) == tmp_path / ".parts" / "3f" / KEY
    assert everything(tmp_path) == [f".parts/3f/{KEY}/{n}" for n in ("part.json", "train.arrow")]
    assert everything(tmp_path / "run") == []


def test_what_was_published_is_found_with_its_counts_and_rows(store: PartStore) -> None:
    info = make(store)
    assert store.find(KEY) == info
    assert (info.key, info.schema_version) == (KEY, PART_SCHEMA)
    assert (info.reasons, info.unknown, info.lengths) == ({"duplicate": 1}, 2, LENGTHS)
    assert {split: shard.rows for split, shard in info.shards.items()} == {"train": 3, "eval": 1}
    for split, names in (("train", ["a", "b", "c"]), ("eval", ["d"])):
        path = store.path(KEY) / f"{split}.arrow"
        assert info.shards[split].bytes == path.stat().st_size
        assert info.shards[split].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        with pa.memory_map(str(path)) as file:
            assert pa.ipc.open_stream(file).read_all()["conversation_id"].to_pylist() == names


def test_a_part_without_rows_has_no_shards(store: PartStore) -> None:
    with store.new(KEY, SCHEMA) as writer:
        info = writer.publish({"empty_answer": 3}, 0, {"input_ids": [0], "labels": [0]})
    assert info.shards == {}
    assert store.find(KEY) == info
    store.pin(info)
    assert store.is_whole(info)
    store.unpin(info)
    assert everything(store.path(KEY)) == ["part.json"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def load(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_text().partition("\n")[2])
    return fields


def save(path: Path, fields: dict[str, Any]) -> None:
    """Write a ``part.json`` whose checksum is right, whatever is in it."""
    body = json.dumps(fields)
    path.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")


def rewrite(path: Path, **changes: Any) -> None:
    save(path, load(path) | changes)


def without(path: Path, name: str) -> None:
    fields = load(path)
    del fields[name]
    save(path, fields)


NOT_FOUND: dict[str, Callable[[Path], object]] = {
    "a shard cut off": lambda p: (p / "train.arrow").write_bytes(b"x"),
    "a shard with more behind it": lambda p: lengthen(p / "eval.arrow"),
    "a shard missing": lambda p: (p / "eval.arrow").unlink(),
    "no part.json": lambda p: (p / "part.json").unlink(),
    "an empty part.json": lambda p: (p / "part.json").write_text(""),
    "half a part.json": lambda p: (p / "part.json").write_text('{"key": "' + KEY),
    "part.json no JSON": lambda p: (p / "part.json").write_bytes(b"\xff\xfe\x00"),
    "part.json a list": lambda p: (p / "part.json").write_text("[1]"),
    "part.json null": lambda p: (p / "part.json").write_text("null"),
    "part.json a folder": lambda p: ((p / "part.json").unlink(), (p / "part.json").mkdir()),
    "a foreign key": lambda p: rewrite(p / "part.json", key=OTHER),
    "an older schema": lambda p: rewrite(p / "part.json", schema_version=PART_SCHEMA - 1),
    "a newer schema": lambda p: rewrite(p / "part.json", schema_version=PART_SCHEMA + 1),
    "no schema of this program": lambda p: rewrite(p / "part.json", schema_version="one"),
    "a number changed": lambda p: (p / "part.json").write_text(
        (p / "part.json").read_text().replace('"unknown": 2', '"unknown": 3')
    ),
    "an unknown field": lambda p: rewrite(p / "part.json", more=1),
    "a field missing": lambda p: without(p / "part.json", "lengths"),
    "no shards": lambda p: without(p / "part.json", "shards"),
    "shards a list": lambda p: rewrite(p / "part.json", shards=[1]),
    "a shard without its size": lambda p: rewrite(p / "part.json", shards={"train": {"rows": 3}}),
}


@pytest.mark.parametrize("damage", NOT_FOUND)
def test_a_damaged_or_foreign_part_is_not_found_and_made_again(
    store: PartStore, tmp_path: Path, damage: str
) -> None:
    info = make(store)
    before = {name: (store.path(KEY) / name).read_bytes() for name in everything(store.path(KEY))}
    NOT_FOUND[damage](store.path(KEY))
    assert store.find(KEY) is None
    assert make(store) == info
    assert store.find(KEY) == info
    after = {name: (store.path(KEY) / name).read_bytes() for name in everything(store.path(KEY))}
    assert after == before
    assert [p.name for p in (tmp_path / ".parts" / "3f").iterdir()] == [KEY]
    assert everything(tmp_path / "run") == []


@pytest.mark.parametrize("name", ["train.arrow", "eval.arrow"])
def test_a_flipped_bit_is_found_by_its_hash(store: PartStore, name: str) -> None:
    make(store)
    flip(store.path(KEY) / name)
    info = store.find(KEY)
    assert info is not None
    store.pin(info)
    assert not store.is_whole(info)
    store.unpin(info)
    again = make(store)
    store.pin(again)
    assert store.is_whole(again)


def test_a_whole_part_is_whole(store: PartStore) -> None:
    info = make(store)
    store.pin(info)
    assert store.is_whole(info)


def test_a_part_moved_under_another_key_is_not_taken(store: PartStore) -> None:
    make(store)
    shutil.copytree(store.path(KEY), store.path(OTHER))
    assert store.find(OTHER) is None
    assert store.find(KEY) is not None


def test_pinned_files_survive_the_removal_of_the_part(store: PartStore, tmp_path: Path) -> None:
    info = make(store)
    content = {s: (store.path(KEY) / f"{s}.arrow").read_bytes() for s in info.shards}
    inodes = {s: (store.path(KEY) / f"{s}.arrow").stat().st_ino for s in info.shards}
    store.pin(info)
    shutil.rmtree(tmp_path / ".parts")
    assert store.find(KEY) is None
    for split in ("train", "eval"):
        assert store.pinned(KEY, split).read_bytes() == content[split]
        assert store.pinned(KEY, split).stat().st_ino == inodes[split]
    assert store.is_whole(info)
    store.pin(info)  # already held
    store.unpin(info)
    assert everything(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        store.pin(info)


def test_pinning_twice_and_unpinning_twice_does_no_harm(store: PartStore) -> None:
    info = make(store)
    store.pin(info)
    store.pin(info)
    assert store.pinned(KEY, "train").stat().st_nlink == 2
    store.unpin(info)
    store.unpin(info)
    assert not store.pinned(KEY, "train").exists()
    assert store.find(KEY) == info


def test_a_part_half_pinned_when_it_goes_is_not_there(store: PartStore) -> None:
    info = make(store)
    store.unpin(info)
    (store.path(KEY) / "eval.arrow").unlink()
    with pytest.raises(FileNotFoundError):
        store.pin(info)


def test_pinning_says_when_a_part_was_last_used(store: PartStore) -> None:
    import os

    info = make(store)
    file = store.path(KEY) / "part.json"
    os.utime(file, (1, 1))
    store.pin(info)
    assert file.stat().st_mtime > 1_000_000_000


def test_an_abandoned_writer_leaves_nothing(store: PartStore, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), store.new(KEY, SCHEMA) as writer:
        writer.write("train", rows("a"))
        assert everything(tmp_path) != []
        raise RuntimeError("stop")
    with store.new(KEY, SCHEMA) as writer:
        writer.write("train", rows("a"))  # and never published
    assert everything(tmp_path) == []
    assert everything(tmp_path / "run") == []
    assert store.find(KEY) is None


def test_a_writer_starts_anew_where_another_was_killed(store: PartStore, tmp_path: Path) -> None:
    writer = store.new(KEY, SCHEMA)
    writer.__enter__()
    writer.write("train", rows("left by a kill"))
    writer.write("eval", rows("left by a kill"))
    info = make(store, evaluated=False)
    assert list(info.shards) == ["train"]
    assert everything(store.path(KEY)) == ["part.json", "train.arrow"]
    writer.__exit__()


@pytest.mark.parametrize("where", ["write", "close", "part.json"])
def test_a_full_disk_leaves_nothing_and_the_rerun_is_the_same(
    store: PartStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    close = _HashingFile.close

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    def close_full(file: _HashingFile) -> None:
        close(file)
        full()

    with monkeypatch.context() as patch:
        if where == "part.json":
            patch.setattr("os.fsync", full)
        else:
            patch.setattr(_HashingFile, where, full if where == "write" else close_full)
        with pytest.raises(OutputError, match="No space left on device"):
            make(store)
    assert everything(tmp_path) == []
    info = make(store)
    (tmp_path / "elsewhere").mkdir()
    other = make(PartStore(tmp_path / "elsewhere" / ".parts", tmp_path / "elsewhere"))
    assert other == info


def test_publishing_over_a_part_leaves_pinned_files_of_the_old_one(
    store: PartStore, tmp_path: Path
) -> None:
    old = make(store)
    (tmp_path / "other run").mkdir()
    other = PartStore(tmp_path / ".parts", tmp_path / "other run")
    other.pin(old)
    inode = (store.path(KEY) / "train.arrow").stat().st_ino
    new = make(store)
    assert new == old
    made = (store.path(KEY) / "train.arrow").stat().st_ino
    assert made != inode
    assert other.pinned(KEY, "train").stat().st_ino == inode
    assert other.is_whole(old)
    assert store.pinned(KEY, "train").stat().st_ino == made  # pinned as it is published


def test_two_runs_making_one_part_both_have_it(store: PartStore, tmp_path: Path) -> None:
    (tmp_path / "other run").mkdir()
    other = PartStore(tmp_path / ".parts", tmp_path / "other run")
    with store.new(KEY, SCHEMA) as one, other.new(KEY, SCHEMA) as two:
        for writer in (one, two):
            writer.write("train", rows("a"))
        first, second = (w.publish({}, 0, LENGTHS) for w in (one, two))
    assert first == second
    assert store.find(KEY) == other.find(KEY) == first
    assert everything(tmp_path / ".parts") == [
        f"3f/{KEY}/{n}" for n in ("part.json", "train.arrow")
    ]


class _Meanwhile:
    """Lets something happen once, right before a call of a method of ``Path``."""

    def __init__(self, patch: pytest.MonkeyPatch, method: str, skip: int = 0) -> None:
        self.event: Callable[[], object] | None = None
        original = getattr(Path, method)

        def call(path: Path, *args: Any, **options: Any) -> Any:
            nonlocal skip
            if self.event is not None:
                skip -= 1
                if skip < 0:
                    event, self.event = self.event, None
                    event()
            return original(path, *args, **options)

        patch.setattr(Path, method, call)


@pytest.mark.parametrize(
    ("is_damaged", "rename"),
    [
        (False, 0),  # into place, where nothing is yet
        (True, 0),  # into place, where a damaged one is
        (True, 1),  # of the damaged one out of the way
        (True, 2),  # into place once more
    ],
)
def test_two_runs_may_publish_one_part_at_the_same_moment(
    store: PartStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_damaged: bool,
    rename: int,
) -> None:
    """Runs of other inputs share parts, and so do workers of one that holds a part twice."""
    if is_damaged:
        make(store)
        (store.path(KEY) / "train.arrow").write_bytes(b"x")
    (tmp_path / "other run").mkdir()
    other = PartStore(tmp_path / ".parts", tmp_path / "other run")
    meanwhile = _Meanwhile(monkeypatch, "rename", skip=rename)
    with store.new(KEY, SCHEMA) as writer:
        writer.write("train", rows("a"))
        with other.new(KEY, SCHEMA) as second:
            second.write("train", rows("a"))
            meanwhile.event = lambda: second.publish({}, 0, LENGTHS)
            info = writer.publish({}, 0, LENGTHS)
            assert meanwhile.event is None, "there was no such moment"
    assert store.find(KEY) == info
    store.pin(info)
    assert store.is_whole(info)
    store.unpin(info)
    names = ("part.json", "train.arrow")
    assert everything(tmp_path) == [f".parts/3f/{KEY}/{name}" for name in names]
    assert [p.name for p in (tmp_path / ".parts" / "3f").iterdir()] == [KEY]


def test_two_threads_may_pin_one_part_at_the_same_moment(
    store: PartStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = make(store)
    store.unpin(info)
    link = parts_module.os.link
    moments = 0

    def pin_and_link(source: Path, target: Path) -> None:
        nonlocal moments
        moments += 1
        if moments == 1:
            store.pin(info)
        link(source, target)

    monkeypatch.setattr(parts_module.os, "link", pin_and_link)
    store.pin(info)
    assert moments > 1
    assert store.is_whole(info)


def test_all_parts_that_are_there_are_listed(store: PartStore, tmp_path: Path) -> None:
    assert list(iterate_parts(tmp_path / ".parts")) == []
    keys = [KEY, OTHER, "aa" + "2" * 22]
    for key in reversed(keys):
        make(store, key)
    (tmp_path / ".parts" / "zz").mkdir()
    assert list(iterate_parts(tmp_path / ".parts")) == [store.path(key) for key in keys]


def test_where_the_disk_has_no_hard_links_files_are_copied(
    store: PartStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    info = make(store)
    store.unpin(info)
    monkeypatch.setattr(parts_module.os, "link", refuse)
    store.pin(info)
    assert store.is_whole(info)
    assert store.pinned(KEY, "train").stat().st_nlink == 1
    shutil.rmtree(tmp_path / ".parts")
    assert store.is_whole(info)
