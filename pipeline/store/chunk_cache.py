"""Parts of preparations, kept for later ones: the rows of some conversations, by their content.

    .parts/3f/3f9c…/train.arrow  eval.arrow  part.json

A part's key is of its conversations, the options, the tokenizer and the schema, so a part that is
there is the one that would be made. A prepared folder holds hard links to its parts' shards; a
part may be deleted at any time, and prepared folders stay whole.
"""

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.store.atomic import output_errors, publish_folder
from pipeline.store.checksummed_json import read_checked, write_checked
from pipeline.store.fingerprint import sha256_of_file
from pipeline.store.shards import ShardFile, ShardWriter

PART_SCHEMA = 2
FILENAME = "part.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartInfo:
    """What a part holds and what was counted making it: ``part.json``, behind its checksum."""

    key: str
    shards: dict[str, ShardFile]
    """Rows, bytes and SHA-256 of each split's file; a split without rows has none."""
    reasons: dict[str, int]
    unknown: int
    """How many ids are ``<unk>``, of both columns."""
    lengths: dict[str, list[int]]
    """For each column, how many rows have each length: entry n counts the rows of n ids."""
    answers_with_unknown: int = 0
    """How many rows' answers hold ``<unk>``."""
    lost: dict[str, int] = dataclasses.field(default_factory=dict)
    """The characters that these answers lost."""
    schema_version: int = PART_SCHEMA


class PartStore:
    """The parts below one folder.

    Args:
        folder: Where parts are kept.
        temporary: Where they are made: on the same disk, and this run's own.
    """

    def __init__(self, folder: Path, temporary: Path) -> None:
        """Nothing is read or written yet."""
        self._folder, self.temporary = folder, temporary

    def find(self, key: str) -> PartInfo | None:
        """Return a part that is there, of this schema and of the right sizes; else None."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            fields = read_checked(self.path(key) / FILENAME)
            if fields is None:
                return None
            shards = {split: ShardFile(**shard) for split, shard in fields.pop("shards").items()}
            info = PartInfo(shards=shards, **fields)
            sizes = [
                self._kept(key, split).stat().st_size == s.bytes for split, s in shards.items()
            ]
            if info.key == key and info.schema_version == PART_SCHEMA and all(sizes):
                return info
        return None

    def pin(self, info: PartInfo) -> None:
        """Give a part's files a second name in this run's own folder: so they stay till its end.

        Raises:
            FileNotFoundError: The part is not there any more.
            OutputError: The name cannot be made.
        """
        for split in info.shards:
            self.pin_file(self._kept(info.key, split), info.key, split)
        with contextlib.suppress(OSError):  # when it was last used, for ``duet cache prune``
            os.utime(self.path(info.key) / FILENAME)

    def pin_file(self, path: Path, key: str, split: str) -> None:
        """Pin one file of a part, wherever it is."""
        target = self.pinned(key, split)
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link(path, target)

    def unpin(self, info: PartInfo) -> None:
        """Take the second names away."""
        for split in info.shards:
            self.pinned(info.key, split).unlink(missing_ok=True)

    def pinned(self, key: str, split: str) -> Path:
        """Return the second name of one split's file."""
        return self.temporary / "pinned" / f"{key}-{split}.arrow"

    def is_whole(self, info: PartInfo) -> bool:
        """Read a pinned part's shards and tell whether they are what was written."""
        with contextlib.suppress(InputError):
            return all(
                sha256_of_file(self.pinned(info.key, split)) == shard.sha256
                for split, shard in info.shards.items()
            )
        return False

    def path(self, key: str) -> Path:
        """Return where a part is, or would be."""
        return self._folder / key[:2] / key

    def _kept(self, key: str, split: str) -> Path:
        return self.path(key) / f"{split}.arrow"

    def new(self, key: str, schema: pa.Schema) -> "PartWriter":
        """Start to write a part."""
        return PartWriter(self, key, self._sibling(key), schema)

    def contents(self, info: PartInfo) -> dict[str, bytes]:
        """Return the bytes of a part's shards by split: all that another store needs of it."""
        return {split: self._kept(info.key, split).read_bytes() for split in info.shards}

    def receive(self, info: PartInfo, contents: Mapping[str, bytes]) -> None:
        """Keep a part that was made in another store, whose ``contents`` these are.

        Raises:
            OutputError: It cannot be written; nothing of it is visible then.
        """
        temporary = self._sibling(info.key)
        try:
            _make_empty(temporary)
            for split, content in contents.items():
                with output_errors(temporary):
                    (temporary / f"{split}.arrow").write_bytes(content)
            self.publish(info, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def publish(self, info: PartInfo, temporary: Path) -> None:
        """Write ``part.json`` beside a part's shards, pin them, and move all of it into place.

        Once it is in place, another run may replace it, or prune it: this run has it pinned.
        """
        # Not asdict(), which copies each number of the histograms.
        fields = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
        fields["shards"] = {split: dataclasses.asdict(s) for split, s in info.shards.items()}
        write_checked(temporary / FILENAME, fields)
        self.unpin(info)
        for split in info.shards:
            self.pin_file(temporary / f"{split}.arrow", info.key, split)
        final = self.path(info.key)
        with output_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
        publish_folder(temporary, final)

    def _sibling(self, key: str) -> Path:
        return self.temporary / f"part-{key}-{os.getpid()}-{threading.get_ident()}"


class PartWriter:
    """Writes one part; it is there, complete, after ``publish`` and not before."""

    def __init__(self, store: PartStore, key: str, temporary: Path, schema: pa.Schema) -> None:
        """Files are opened as rows come."""
        self._store, self._key = store, key
        self._temporary, self._schema = temporary, schema
        self._writers: dict[str, ShardWriter] = {}

    def __enter__(self) -> Self:
        """Make the temporary folder."""
        _make_empty(self._temporary)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not published."""
        for writer in self._writers.values():
            writer.abandon()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def write(self, split: str, batch: pa.RecordBatch) -> None:
        """Append rows to a split."""
        if split not in self._writers:
            path = self._temporary / f"{split}.arrow"
            self._writers[split] = ShardWriter(path, self._schema)
        self._writers[split].write(batch)

    def publish(
        self,
        reasons: dict[str, int],
        unknown: int,
        lengths: dict[str, list[int]],
        answers_with_unknown: int = 0,
        lost: dict[str, int] | None = None,
    ) -> PartInfo:
        """Finish the files and move the part into place, over one that is there."""
        info = PartInfo(
            key=self._key,
            shards={split: writer.close() for split, writer in self._writers.items()},
            reasons=reasons,
            unknown=unknown,
            lengths=lengths,
            answers_with_unknown=answers_with_unknown,
            lost=lost or {},
        )
        self._store.publish(info, self._temporary)
        return info


def _make_empty(folder: Path) -> None:
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


def iterate_parts(folder: Path) -> Iterator[Path]:
    """Yield the folders of all parts that are there."""
    yield from sorted(path.parent for path in folder.glob(f"??/[!.]*/{FILENAME}"))
