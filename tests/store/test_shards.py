"""Shards: written in order, read memory-mapped, checked against their rows."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import OutputError, PreparedFolderError
from pipeline.prepare.prepared_writer import PreparedWriter
from pipeline.store.chunk_cache import ChunkCache
from pipeline.store.manifest import Manifest, Shard
from pipeline.store.shards import ShardWriter, open_split, row_schema

SCHEMA = row_schema(32_109)


def batch(start: int, rows: int) -> pa.RecordBatch:
    ids = [[i, i + 1] for i in range(start, start + rows)]
    columns = [ids, ids, [f"c{i}" for i in range(start, start + rows)], list(range(rows))]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def manifest(found: list[Shard]) -> Manifest:
    return Manifest(fingerprint="f", config={}, sources=[], counts={}, tokens={}, shards=found)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "int32")])
def test_ids_are_as_narrow_as_the_vocabulary_allows(vocab_size: int, dtype: str) -> None:
    assert str(row_schema(vocab_size).field("labels").type.value_type) == dtype


def write_parts(
    folder: Path, splits: list[str], *parts: dict[str, list[pa.RecordBatch]]
) -> list[Shard]:
    """Put a prepared folder together from parts, each with the batches of each split."""
    store = ChunkCache(folder / "kept", folder / "temporary")
    prepared = PreparedWriter(folder, splits, 32_109)
    for i, part in enumerate(parts):
        with store.new() as writer:
            for split, batches in part.items():
                for rows in batches:
                    writer.write(split, rows)
            info = writer.publish(f"{i:024d}", {})
        store.pin(info)
        prepared.add(store, info)
    return prepared.close()


def test_rows_come_back_in_order_from_several_shards(tmp_path: Path) -> None:
    parts = [[batch(0, 2), batch(2, 1)], [batch(3, 3)], [batch(6, 3), batch(9, 0)]]
    found = write_parts(tmp_path, ["train"], *({"train": batches} for batches in parts))
    assert [shard.rows for shard in found] == [3, 3, 3]
    for shard in found:
        data = (tmp_path / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    before = pa.total_allocated_bytes()
    table = open_split(tmp_path, manifest(found), "train")
    assert pa.total_allocated_bytes() == before, "read into memory, not mapped"
    assert table["conversation_id"].to_pylist() == [f"c{i}" for i in range(9)]
    assert table.schema.equals(SCHEMA)


def test_an_empty_split_has_an_empty_shard(tmp_path: Path) -> None:
    found = write_parts(tmp_path, ["train", "eval"], {"train": [batch(0, 2)]})
    assert [(shard.split, shard.rows) for shard in found] == [("train", 2), ("eval", 0)]
    assert open_split(tmp_path, manifest(found), "eval").num_rows == 0


def test_a_shard_cut_at_a_batch_is_noticed(tmp_path: Path) -> None:
    """Such a stream reads back shorter, without an error of its own."""
    found = write_parts(tmp_path, ["train"], {"train": [batch(0, 3), batch(3, 3)]})
    path = tmp_path / "train" / "shard-00000.arrow"
    data = path.read_bytes()
    cut = data.index(b"\xff\xff\xff\xff", len(data) // 2)  # where the second batch begins
    assert pa.ipc.open_stream(data[:cut]).read_all().num_rows == 3
    path.write_bytes(data[:cut])
    with pytest.raises(PreparedFolderError, match="3 rows, not 6"):
        open_split(tmp_path, manifest(found), "train")


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreparedFolderError, match="got: test"):
        open_split(tmp_path, manifest([]), "test")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        PreparedWriter(tmp_path, ["train"], 32_109)
    with pytest.raises(OutputError, match="cannot write"):
        ShardWriter(tmp_path / "train" / "shard-00000.arrow", SCHEMA)
