"""Arrow shards: written one record batch at a time, read memory-mapped.

Each shard is an Arrow IPC stream, which is what ``datasets`` reads. A stream that was cut short
reads back silently shorter, so rows are checked against the manifest on opening.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import PreparedFolderError
from pipeline.store.atomic import output_errors
from pipeline.store.manifest import Manifest, Shard

if TYPE_CHECKING:
    import pyarrow as pa


def row_schema(vocab_size: int) -> "pa.Schema":
    """Return the columns of a row; ids are uint16 where the vocabulary fits, else int32."""
    import pyarrow as pa  # late, here and below: who only links shards does without it

    ids = pa.list_(pa.uint16() if vocab_size <= 1 << 16 else pa.int32())
    return pa.schema(
        {"input_ids": ids, "labels": ids, "conversation_id": pa.string(), "turn": pa.int32()}
    )


def id_dtype(schema: "pa.Schema") -> Any:
    """Return NumPy's type of the ids in a row."""
    return schema.field("labels").type.value_type.to_pandas_dtype()


@dataclass(frozen=True, slots=True)
class ShardFile:
    """What is known of one Arrow file."""

    rows: int
    bytes: int
    sha256: str


class _FileWriter:
    """Writes one file, and counts and hashes what is in it.

    Raises:
        OutputError: It cannot be written; by each method but ``abandon``.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._rows = path, 0
        with output_errors(path):
            self._file = _HashingFile(path.open("wb"))

    def close(self) -> ShardFile:
        """Finish the file."""
        with output_errors(self._path):
            self._file.close()
        return ShardFile(self._rows, self._file.size, self._file.hash.hexdigest())

    def abandon(self) -> None:
        """Let go of the file, whatever state it is in."""
        with contextlib.suppress(OSError, ValueError):
            self._file.close()


class LinesWriter(_FileWriter):
    """Writes lines of text."""

    def write(self, line: str) -> None:
        """Append one."""
        with output_errors(self._path):
            self._file.write(f"{line}\n".encode())
        self._rows += 1


class ShardWriter(_FileWriter):
    """Writes one Arrow file."""

    def __init__(self, path: Path, schema: "pa.Schema") -> None:
        import pyarrow as pa

        super().__init__(path)
        with output_errors(path):
            self._stream = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), schema)

    def write(self, batch: "pa.RecordBatch") -> None:
        """Append rows."""
        with output_errors(self._path):
            self._stream.write_batch(batch)
        self._rows += batch.num_rows

    def close(self) -> ShardFile:
        """Finish the file."""
        with output_errors(self._path):
            self._stream.close()
        return super().close()


class _HashingFile:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash, self.size, self.closed = hashlib.sha256(), 0, False

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self.closed = True


def write_split(folder: Path, split: str, shards: list[Shard]) -> None:
    """Write the state files by which ``datasets`` knows a split and its shards."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": Path(shard.path).name} for shard in shards],
        "_fingerprint": hashlib.sha256(repr(shards).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    with output_errors(folder / split):
        _write_json(folder / split / "state.json", state)
        # Without features, datasets takes them from the shards' own schema.
        _write_json(folder / split / "dataset_info.json", {"splits": None})


def write_dataset_dict(folder: Path, splits: list[str]) -> None:
    """Write the file by which ``datasets.load_from_disk`` knows a folder of splits."""
    with output_errors(folder):
        _write_json(folder / "dataset_dict.json", {"splits": splits})


def open_split(folder: Path, manifest: Manifest, split: str) -> "pa.Table":
    """Memory-map the rows of a split; nothing is read until it is looked at.

    Returns:
        A table of ``input_ids`` and ``labels`` (list<uint16> or list<int32>),
        ``conversation_id`` (string) and ``turn`` (int32), one row a pair.

    Raises:
        PreparedFolderError: No such split, or a shard that does not hold its rows.
    """
    import pyarrow as pa

    shards = [shard for shard in manifest.shards if shard.split == split]
    if not shards:
        raise PreparedFolderError(
            "no such split",
            where=folder,
            got=split,
            do="use one of " + ", ".join(manifest.splits()),
        )
    return pa.concat_tables([_open_shard(folder / shard.path, shard.rows) for shard in shards])


def _open_shard(path: Path, rows: int) -> "pa.Table":
    import pyarrow as pa

    again = "run duet prepare again"
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise PreparedFolderError(
            "a shard cannot be read", where=path, got=error, do=again
        ) from error
    if table.num_rows != rows:
        raise PreparedFolderError(
            "a shard is damaged", where=path, got=f"{table.num_rows} rows, not {rows}", do=again
        )
    return table


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
