"""Chunks, kept for later runs: what segments of input became, by the segments' content.

    .chunks/3f/3f9c…/train.arrow  eval.arrow  rejected.jsonl  chunk.json

A chunk's key is of its segment's bytes, the options, the tokenizer and the schema, so a chunk that
is there is the one that would be made. A prepared folder holds hard links to its chunks' shards; a
chunk may be deleted at any time, and prepared folders stay whole.
"""

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import InputError
from pipeline.store.atomic import output_errors, publish_folder, write_files
from pipeline.store.fingerprint import sha256_of_file
from pipeline.store.seals import read_checked, write_checked
from pipeline.store.shards import LinesWriter, ShardFile, ShardWriter

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_SCHEMA = 3
FILENAME = "chunk.json"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What is known of a chunk: ``chunk.json``, with a checksum before it."""

    key: str
    files: dict[str, ShardFile]
    """Rows, bytes and SHA-256 of each of its files; one that would be empty is not there."""
    content: dict[str, Any]
    """What was counted making it; ``prepare`` knows what stands in it."""
    schema_version: int = CHUNK_SCHEMA
    is_checked: bool = dataclasses.field(default=True, compare=False)
    """Whether its files are what was written, as far as this run knows."""


class ChunkCache:
    """The chunks below one folder.

    Args:
        folder: Where chunks are kept.
        temporary: Where they are made: on the same disk, and this run's own.
    """

    def __init__(self, folder: Path, temporary: Path) -> None:
        self._folder, self.temporary = folder, temporary

    def find(self, key: str) -> Chunk | None:
        """Return a chunk that is there, of this schema and of the right sizes; else None."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            fields = read_checked(self.path(key) / FILENAME)
            if fields is None:
                return None
            files = {name: ShardFile(**file) for name, file in fields.pop("files").items()}
            chunk = Chunk(files=files, is_checked=False, **fields)
            sizes = [(self.path(key) / name).stat().st_size == f.bytes for name, f in files.items()]
            if chunk.key == key and chunk.schema_version == CHUNK_SCHEMA and all(sizes):
                return chunk
        return None

    def take(self, key: str) -> Chunk | None:
        """Return a chunk that is there, pinned, and not yet read to check it; else None."""
        chunk = self.find(key)
        with contextlib.suppress(FileNotFoundError):
            if chunk is not None:
                self.pin(chunk)
                return chunk
        return None

    def pin(self, chunk: Chunk) -> None:
        """Give a chunk's files a second name in this run's own folder: so they stay till its end.

        Raises:
            FileNotFoundError: The chunk is not there any more.
            OutputError: The name cannot be made.
        """
        for name in chunk.files:
            self.pin_file(self.path(chunk.key) / name, chunk.key, name)
        with contextlib.suppress(OSError):  # when it was last used, for ``duet cache prune``
            os.utime(self.path(chunk.key) / FILENAME)

    def pin_file(self, path: Path, key: str, name: str) -> None:
        """Pin one file of a chunk, wherever it is."""
        target = self.pinned(key, name)
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link(path, target)

    def unpin(self, chunk: Chunk) -> None:
        """Take the second names away."""
        for name in chunk.files:
            self.pinned(chunk.key, name).unlink(missing_ok=True)

    def pinned(self, key: str, name: str) -> Path:
        """Return the second name of one file."""
        return self.temporary / "pinned" / f"{key}-{name}"

    def is_whole(self, chunk: Chunk) -> bool:
        """Read a pinned chunk's files; return whether they are what was written."""
        with contextlib.suppress(InputError):
            return all(
                sha256_of_file(self.pinned(chunk.key, name)) == file.sha256
                for name, file in chunk.files.items()
            )
        return False

    def path(self, key: str) -> Path:
        """Return where a chunk is, or would be."""
        return self._folder / key[:2] / key

    def new(self) -> "ChunkWriter":
        """Start to write a chunk."""
        return ChunkWriter(self)

    def contents(self, chunk: Chunk) -> dict[str, bytes]:
        """Return the bytes of a pinned chunk's files: all that another cache needs of it."""
        return {name: self.pinned(chunk.key, name).read_bytes() for name in chunk.files}

    def receive(self, chunk: Chunk, contents: Mapping[str, bytes]) -> None:
        """Keep a chunk that was made in another cache, whose ``contents`` these are.

        Raises:
            OutputError: It cannot be written; nothing of it is visible then.
        """
        temporary = self.sibling()
        try:
            make_empty(temporary)
            write_files(temporary, contents)
            self.publish(chunk, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def publish(self, chunk: Chunk, temporary: Path) -> None:
        """Write ``chunk.json`` beside a chunk's files, pin them, and move all of it into place.

        Once it is in place, another run may replace it, or prune it: this run has it pinned.
        """
        fields = {field.name: getattr(chunk, field.name) for field in dataclasses.fields(chunk)}
        del fields["is_checked"]
        fields["files"] = {name: dataclasses.asdict(file) for name, file in chunk.files.items()}
        write_checked(temporary / FILENAME, fields)
        self.unpin(chunk)
        for name in chunk.files:
            self.pin_file(temporary / name, chunk.key, name)
        final = self.path(chunk.key)
        with output_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
        publish_folder(temporary, final)

    def sibling(self) -> Path:
        """Return a folder to make a chunk in."""
        return self.temporary / f"chunk-{os.getpid()}-{threading.get_ident()}"


class ChunkWriter:
    """Writes one chunk; it is there, complete, after ``publish`` and not before."""

    def __init__(self, cache: ChunkCache) -> None:
        self._cache, self._temporary = cache, cache.sibling()
        self._writers: dict[str, ShardWriter] = {}
        self._rejected: LinesWriter | None = None
        self._kept: dict[str, ShardFile] = {}

    def __enter__(self) -> Self:
        make_empty(self._temporary)
        return self

    def __exit__(self, *_: object) -> None:
        for writer in (*self._writers.values(), self._rejected):
            if writer is not None:
                writer.abandon()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def write(self, split: str, batch: "pa.RecordBatch") -> None:
        """Append rows to a split."""
        if split not in self._writers:
            path = self._temporary / f"{split}.arrow"
            self._writers[split] = ShardWriter(path, batch.schema)
        self._writers[split].write(batch)

    def reject(self, line: str) -> None:
        """Append a line to what was left out."""
        if self._rejected is None:
            self._rejected = LinesWriter(self._temporary / REJECTED)
        self._rejected.write(line)

    def keep(self, path: Path, file: ShardFile) -> None:
        """Take over what was left out of another chunk."""
        link(path, self._temporary / REJECTED)
        self._kept[REJECTED] = file

    def publish(self, key: str, content: dict[str, Any]) -> Chunk:
        """Finish the files and move the chunk into place, over one that is there."""
        files = {f"{split}.arrow": writer.close() for split, writer in self._writers.items()}
        files |= self._kept
        if self._rejected is not None:
            files[REJECTED] = self._rejected.close()
        chunk = Chunk(key=key, files=files, content=content)
        self._cache.publish(chunk, self._temporary)
        return chunk


def make_empty(folder: Path) -> None:
    """Make a folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    with output_errors(folder):
        folder.mkdir(parents=True)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; where the disk has no hard links, copy it.

    Where the name is taken already, it stays.

    Raises:
        FileNotFoundError: It is not there any more.
        OutputError: The name cannot be made.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise
    except OSError:
        with output_errors(target):
            shutil.copyfile(source, target)


def iterate_chunks(folder: Path) -> Iterator[Path]:
    """Yield the folders of all chunks that are there."""
    yield from sorted(path.parent for path in folder.glob(f"??/[!.]*/{FILENAME}"))
