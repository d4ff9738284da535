"""A part that was made elsewhere: kept with the same files, or not at all."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.store.chunk_cache import PartInfo, PartStore

SCHEMA = pa.schema({"turn": pa.int32()})


def store_in(folder: Path) -> PartStore:
    return PartStore(folder / "parts", folder / "temporary")


@pytest.fixture
def made(tmp_path: Path) -> tuple[PartStore, PartInfo]:
    store = store_in(tmp_path / "there")
    with store.new("a1b2", SCHEMA) as writer:
        for split in ("train", "eval"):
            writer.write(split, pa.RecordBatch.from_pydict({"turn": [1, 2, 3]}, SCHEMA))
        return store, writer.publish({"answer_cut": 1}, 2, {"labels": [0, 3]})


def files(store: PartStore, key: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.path(key).iterdir()}


def test_a_received_part_has_the_files_of_the_one_that_was_made(
    made: tuple[PartStore, PartInfo], tmp_path: Path
) -> None:
    there, info = made
    here = store_in(tmp_path / "here")
    here.receive(info, there.contents(info))
    assert files(here, info.key) == files(there, info.key)
    assert here.find(info.key) == info
    assert here.is_whole(info)
    assert [path.name for path in here.temporary.iterdir()] == ["pinned"]


def test_a_damaged_part_is_replaced(made: tuple[PartStore, PartInfo]) -> None:
    store, info = made
    contents = store.contents(info)
    (store.path(info.key) / "train.arrow").write_bytes(b"damage")
    store.receive(info, contents)
    assert store.is_whole(info)


def test_what_cannot_be_written_is_not_there(
    made: tuple[PartStore, PartInfo], tmp_path: Path
) -> None:
    there, info = made
    here = store_in(tmp_path / "here")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "parts").write_text("a file where a folder belongs")
    with pytest.raises(OutputError):
        here.receive(info, there.contents(info))
    assert here.find(info.key) is None
    assert [path.name for path in here.temporary.iterdir()] == ["pinned"]
