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
from pipeline.store import chunk_cache as chunks_module
from pipeline.store.chunk_cache import CHUNK_SCHEMA, Chunk, ChunkCache, iterate_chunks
from pipeline.store.shards import _HashingFile, row_schema

SCHEMA = row_schema(1000)
KEY, OTHER = "3f" + "0" * 22, "3f" + "1" * 22


@pytest.fixture
def store(tmp_path: Path) -> ChunkCache:
    (tmp_path / "run").mkdir()
    return ChunkCache(tmp_path / ".chunks", tmp_path / "run")


def rows(*names: str) -> pa.RecordBatch:
    columns = [[[5, 6]] * len(names), [[7]] * len(names), list(names), [1] * len(names)]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def make(store: ChunkCache, key: str = KEY, *, evaluated: bool = True) -> Chunk:
    with store.new() as writer:
        writer.write("train", rows("a", "b"))
        writer.write("train", rows("c"))
        if evaluated:
            writer.write("eval", rows("d"))
        return writer.publish(key, {"reasons": {"duplicate": 1}})


def everything(folder: Path) -> list[str]:
    """Return all files but those that a run has pinned."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "pinned"]
    return sorted(str(p.relative_to(folder)) for p in files)


def test_a_part_is_there_after_publish_and_not_before(store: ChunkCache, tmp_path: Path) -> None:
    assert store.find(KEY) is None
    with store.new() as writer:
        writer.write("train", rows("a"))
        assert store.find(KEY) is None
        assert not store.path(KEY).exists()
        info = writer.publish(KEY, {})
        assert store.find(KEY) == info
    assert store.path(KEY) == tmp_path / ".chunks" / "3f" / KEY
    assert everything(tmp_path) == [f".chunks/3f/{KEY}/{n}" for n in ("chunk.json", "train.arrow")]
    assert everything(tmp_path / "run") == []


def test_what_was_published_is_found_with_its_counts_and_rows(store: ChunkCache) -> None:
    info = make(store)
    assert store.find(KEY) == info
    assert (info.key, info.schema_version) == (KEY, CHUNK_SCHEMA)
    assert info.content == {"reasons": {"duplicate": 1}}
    rows = {name: file.rows for name, file in info.files.items()}
    assert rows == {"train.arrow": 3, "eval.arrow": 1}
    for split, names in (("train", ["a", "b", "c"]), ("eval", ["d"])):
        path = store.path(KEY) / f"{split}.arrow"
        assert info.files[f"{split}.arrow"].bytes == path.stat().st_size
        assert info.files[f"{split}.arrow"].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        with pa.memory_map(str(path)) as file:
            assert pa.ipc.open_stream(file).read_all()["conversation_id"].to_pylist() == names


def test_a_part_without_rows_has_no_shards(store: ChunkCache) -> None:
    with store.new() as writer:
        info = writer.publish(KEY, {"reasons": {"empty_answer": 3}})
    assert info.files == {}
    assert store.find(KEY) == info
    store.pin(info)
    assert store.is_whole(info)
    store.unpin(info)
    assert everything(store.path(KEY)) == ["chunk.json"]


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
    """Write a ``chunk.json`` whose checksum is right, whatever is in it."""
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
    "no chunk.json": lambda p: (p / "chunk.json").unlink(),
    "an empty chunk.json": lambda p: (p / "chunk.json").write_text(""),
    "half a chunk.json": lambda p: (p / "chunk.json").write_text('{"key": "' + KEY),
    "chunk.json no JSON": lambda p: (p / "chunk.json").write_bytes(b"\xff\xfe\x00"),
    "chunk.json a list": lambda p: (p / "chunk.json").write_text("[1]"),
    "chunk.json null": lambda p: (p / "chunk.json").write_text("null"),
    "chunk.json a folder": lambda p: ((p / "chunk.json").unlink(), (p / "chunk.json").mkdir()),
    "a foreign key": lambda p: rewrite(p / "chunk.json", key=OTHER),
    "an older schema": lambda p: rewrite(p / "chunk.json", schema_version=CHUNK_SCHEMA - 1),
    "a newer schema": lambda p: rewrite(p / "chunk.json", schema_version=CHUNK_SCHEMA + 1),
    "no schema of this program": lambda p: rewrite(p / "chunk.json", schema_version="one"),
    "a number changed": lambda p: (p / "chunk.json").write_text(
        (p / "chunk.json").read_text().replace('"duplicate": 1', '"duplicate": 3')
    ),
    "an unknown field": lambda p: rewrite(p / "chunk.json", more=1),
    "a field missing": lambda p: without(p / "chunk.json", "content"),
    "no shards": lambda p: without(p / "chunk.json", "files"),
    "shards a list": lambda p: rewrite(p / "chunk.json", files=[1]),
    "a shard without its size": lambda p: rewrite(p / "chunk.json", files={"train": {"rows": 3}}),
}


@pytest.mark.parametrize("damage", NOT_FOUND)
def test_a_damaged_or_foreign_part_is_not_found_and_made_again(
    store: ChunkCache, tmp_path: Path, damage: str
) -> None:
    info = make(store)
    before = {name: (store.path(KEY) / name).read_bytes() for name in everything(store.path(KEY))}
    NOT_FOUND[damage](store.path(KEY))
    assert store.find(KEY) is None
    assert make(store) == info
    assert store.find(KEY) == info
    after = {name: (store.path(KEY) / name).read_bytes() for name in everything(store.path(KEY))}
    assert after == before
    assert [p.name for p in (tmp_path / ".chunks" / "3f").iterdir()] == [KEY]
    assert everything(tmp_path / "run") == []


@pytest.mark.parametrize("name", ["train.arrow", "eval.arrow"])
def test_a_flipped_bit_is_found_by_its_hash(store: ChunkCache, name: str) -> None:
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


def test_a_whole_part_is_whole(store: ChunkCache) -> None:
    info = make(store)
    store.pin(info)
    assert store.is_whole(info)


def test_a_part_moved_under_another_key_is_not_taken(store: ChunkCache) -> None:
    make(store)
    shutil.copytree(store.path(KEY), store.path(OTHER))
    assert store.find(OTHER) is None
    assert store.find(KEY) is not None


def test_pinned_files_survive_the_removal_of_the_part(store: ChunkCache, tmp_path: Path) -> None:
    info = make(store)
    content = {s: (store.path(KEY) / f"{s}.arrow").read_bytes() for s in ("train", "eval")}
    inodes = {s: (store.path(KEY) / f"{s}.arrow").stat().st_ino for s in ("train", "eval")}
    store.pin(info)
    shutil.rmtree(tmp_path / ".chunks")
    assert store.find(KEY) is None
    for split in ("train", "eval"):
        assert store.pinned(KEY, f"{split}.arrow").read_bytes() == content[split]
        assert store.pinned(KEY, f"{split}.arrow").stat().st_ino == inodes[split]
    assert store.is_whole(info)
    store.pin(info)  # already held
    store.unpin(info)
    assert everything(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        store.pin(info)


def test_pinning_twice_and_unpinning_twice_does_no_harm(store: ChunkCache) -> None:
    info = make(store)
    store.pin(info)
    store.pin(info)
    assert store.pinned(KEY, "train.arrow").stat().st_nlink == 2
    store.unpin(info)
    store.unpin(info)
    assert not store.pinned(KEY, "train.arrow").exists()
    assert store.find(KEY) == info


def test_a_part_half_pinned_when_it_goes_is_not_there(store: ChunkCache) -> None:
    info = make(store)
    store.unpin(info)
    (store.path(KEY) / "eval.arrow").unlink()
    with pytest.raises(FileNotFoundError):
        store.pin(info)


def test_pinning_says_when_a_part_was_last_used(store: ChunkCache) -> None:
    import os

    info = make(store)
    file = store.path(KEY) / "chunk.json"
    os.utime(file, (1, 1))
    store.pin(info)
    assert file.stat().st_mtime > 1_000_000_000


def test_an_abandoned_writer_leaves_nothing(store: ChunkCache, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), store.new() as writer:
        writer.write("train", rows("a"))
        assert everything(tmp_path) != []
        raise RuntimeError("stop")
    with store.new() as writer:
        writer.write("train", rows("a"))  # and never published
    assert everything(tmp_path) == []
    assert everything(tmp_path / "run") == []
    assert store.find(KEY) is None


def test_a_writer_starts_anew_where_another_was_killed(store: ChunkCache, tmp_path: Path) -> None:
    writer = store.new()
    writer.__enter__()
    writer.write("train", rows("left by a kill"))
    writer.write("eval", rows("left by a kill"))
    info = make(store, evaluated=False)
    assert list(info.files) == ["train.arrow"]
    assert everything(store.path(KEY)) == ["chunk.json", "train.arrow"]
    writer.__exit__()


@pytest.mark.parametrize("where", ["write", "close", "chunk.json"])
def test_a_full_disk_leaves_nothing_and_the_rerun_is_the_same(
    store: ChunkCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    close = _HashingFile.close

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    def close_full(file: _HashingFile) -> None:
        close(file)
        full()

    with monkeypatch.context() as patch:
        if where == "chunk.json":
            patch.setattr("os.fsync", full)
        else:
            patch.setattr(_HashingFile, where, full if where == "write" else close_full)
        with pytest.raises(OutputError, match="No space left on device"):
            make(store)
    assert everything(tmp_path) == []
    info = make(store)
    (tmp_path / "elsewhere").mkdir()
    other = make(ChunkCache(tmp_path / "elsewhere" / ".chunks", tmp_path / "elsewhere"))
    assert other == info


def test_publishing_over_a_part_leaves_pinned_files_of_the_old_one(
    store: ChunkCache, tmp_path: Path
) -> None:
    old = make(store)
    (tmp_path / "other run").mkdir()
    other = ChunkCache(tmp_path / ".chunks", tmp_path / "other run")
    other.pin(old)
    inode = (store.path(KEY) / "train.arrow").stat().st_ino
    new = make(store)
    assert new == old
    made = (store.path(KEY) / "train.arrow").stat().st_ino
    assert made != inode
    assert other.pinned(KEY, "train.arrow").stat().st_ino == inode
    assert other.is_whole(old)
    assert store.pinned(KEY, "train.arrow").stat().st_ino == made  # pinned as it is published


def test_two_runs_making_one_part_both_have_it(store: ChunkCache, tmp_path: Path) -> None:
    (tmp_path / "other run").mkdir()
    other = ChunkCache(tmp_path / ".chunks", tmp_path / "other run")
    with store.new() as one, other.new() as two:
        for writer in (one, two):
            writer.write("train", rows("a"))
        first, second = (w.publish(KEY, {}) for w in (one, two))
    assert first == second
    assert store.find(KEY) == other.find(KEY) == first
    assert everything(tmp_path / ".chunks") == [
        f"3f/{KEY}/{n}" for n in ("chunk.json", "train.arrow")
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
    store: ChunkCache,
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
    other = ChunkCache(tmp_path / ".chunks", tmp_path / "other run")
    meanwhile = _Meanwhile(monkeypatch, "rename", skip=rename)
    with store.new() as writer:
        writer.write("train", rows("a"))
        with other.new() as second:
            second.write("train", rows("a"))
            meanwhile.event = lambda: second.publish(KEY, {})
            info = writer.publish(KEY, {})
            assert meanwhile.event is None, "there was no such moment"
    assert store.find(KEY) == info
    store.pin(info)
    assert store.is_whole(info)
    store.unpin(info)
    names = ("chunk.json", "train.arrow")
    assert everything(tmp_path) == [f".chunks/3f/{KEY}/{name}" for name in names]
    assert [p.name for p in (tmp_path / ".chunks" / "3f").iterdir()] == [KEY]


def test_two_threads_may_pin_one_part_at_the_same_moment(
    store: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = make(store)
    store.unpin(info)
    link = chunks_module.os.link
    moments = 0

    def pin_and_link(source: Path, target: Path) -> None:
        nonlocal moments
        moments += 1
        if moments == 1:
            store.pin(info)
        link(source, target)

    monkeypatch.setattr(chunks_module.os, "link", pin_and_link)
    store.pin(info)
    assert moments > 1
    assert store.is_whole(info)


def test_all_parts_that_are_there_are_listed(store: ChunkCache, tmp_path: Path) -> None:
    assert list(iterate_chunks(tmp_path / ".chunks")) == []
    keys = [KEY, OTHER, "aa" + "2" * 22]
    for key in reversed(keys):
        make(store, key)
    (tmp_path / ".chunks" / "zz").mkdir()
    assert list(iterate_chunks(tmp_path / ".chunks")) == [store.path(key) for key in keys]


def test_where_the_disk_has_no_hard_links_files_are_copied(
    store: ChunkCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    info = make(store)
    store.unpin(info)
    monkeypatch.setattr(chunks_module.os, "link", refuse)
    store.pin(info)
    assert store.is_whole(info)
    assert store.pinned(KEY, "train.arrow").stat().st_nlink == 1
    shutil.rmtree(tmp_path / ".chunks")
    assert store.is_whole(info)
