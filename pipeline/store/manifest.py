"""``manifest.json``: what a prepared folder holds, and the proof that it is complete."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.run_file import FILENAME as SETTINGS
from pipeline.errors import PreparedFolderError
from pipeline.json_object import read_json_object
from pipeline.store.atomic import write_file
from pipeline.store.seals import FileSeal, find_difference, read_sealed_json, sealed_json

SCHEMA_VERSION = 2
FILENAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Arrow file: its path below the prepared folder, split, rows, bytes and SHA-256."""

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of ``manifest.json``; no absolute path stands in it."""

    fingerprint: str
    """Hash of the records' content, the options, the tokenizer and the schema."""
    config: dict[str, Any]
    sources: list[dict[str, Any]]
    """Name, bytes, format, hash of the content and record counts of each input file."""
    counts: dict[str, Any]
    """``records``, ``rejected``, ``joined``, ``conversations``, ``pairs``, ``reasons`` by name."""
    tokens: dict[str, Any]
    """Totals of both columns, unknown tokens, answers that hold one, the characters that these
    lost, length percentiles, the vocabulary's size."""
    shards: list[Shard]
    unused_keys: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """Keys of ``records`` and of their ``turns`` that nobody read, and how often each was there."""
    files_passed_over: int = 0
    """Files in folders, and among what globs matched, that hold no records."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, FileSeal] = dataclasses.field(default_factory=dict)
    """Bytes and SHA-256 of every other file of the folder."""
    schema_version: int = SCHEMA_VERSION

    def rows(self, split: str) -> int:
        """The number of rows of a split; 0 where there is none."""
        return sum(shard.rows for shard in self.shards if shard.split == split)

    def splits(self) -> list[str]:
        """The splits in the order of the shards."""
        return list(dict.fromkeys(shard.split for shard in self.shards))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``: the last file of a prepared folder, with checksums of all others."""
    shards = {shard.path for shard in manifest.shards}
    names = sorted(_names_in(folder) - shards)
    files = {name: FileSeal.of(folder / name) for name in names}
    whole = dataclasses.replace(manifest, files=files)
    fields = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
    write_file(folder / FILENAME, sealed_json(fields))


def _names_in(folder: Path) -> set[str]:
    """Return the files below a prepared folder, but for the manifest and what is not of it."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found - {FILENAME, SETTINGS}  # the command leaves its settings there afterwards


def verify_prepared(folder: Path) -> tuple[int, int]:
    """Check every byte of a prepared folder.

    Returns:
        How many files there are, and how many bytes in them.

    Raises:
        PreparedFolderError: A file is missing, was changed, or was added.
    """
    manifest = read_manifest(folder)
    try:
        read_sealed_json(folder / FILENAME)
    except ValueError as error:
        raise _not_as_written(folder / FILENAME, error) from error
    seals = manifest.files | {s.path: FileSeal(s.bytes, s.sha256) for s in manifest.shards}
    if difference := find_difference(folder, seals):
        raise _not_as_written(*difference)
    for name in sorted(_names_in(folder) - seals.keys()):
        raise _not_as_written(folder / name, "a file that was not there")
    size = (folder / FILENAME).stat().st_size
    return len(seals) + 1, sum(seal.bytes for seal in seals.values()) + size


def _not_as_written(path: Path, got: object) -> PreparedFolderError:
    return PreparedFolderError(
        "a prepared folder was changed after it was written",
        where=path,
        got=got,
        do="copy it again, or run duet prepare again",
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a prepared folder's manifest and check that its files are there.

    Raises:
        PreparedFolderError: No folder, no manifest (the preparation did not end), another
            schema, a file missing, or a shard of another size.
    """
    path = folder / FILENAME
    again = "run duet prepare, and give the path that it prints"
    if not folder.is_dir():
        raise PreparedFolderError(
            "no such prepared folder",
            where=folder,
            got="a file" if folder.exists() else "nothing there",
            do=again,
        )
    if not path.is_file():
        raise PreparedFolderError(
            "not a prepared folder, or not a complete one",
            where=folder,
            got=f"no {FILENAME} in it",
            do=again,
        )
    try:
        fields = read_json_object(path)
        version = fields["schema_version"]
        if version == SCHEMA_VERSION:
            shards = [Shard(**shard) for shard in fields.pop("shards")]
            files = {name: FileSeal(**seal) for name, seal in fields.pop("files").items()}
            fields.pop("checksum", None)  # which verify_prepared looks at
            manifest = Manifest(shards=shards, files=files, **fields)
            _check_types(manifest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else error
        raise PreparedFolderError(
            "the manifest cannot be read", where=path, got=got, do=again
        ) from error
    if version != SCHEMA_VERSION:
        raise PreparedFolderError(
            "prepared by another version of this program",
            where=path,
            got=f"schema {version}, this one reads {SCHEMA_VERSION}",
            do=again,
        )
    shard_sizes = {shard.path: shard.bytes for shard in manifest.shards}
    for name in (*manifest.files, *shard_sizes):
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size is None or size != shard_sizes.get(name, size):
            got = "no such file" if size is None else f"{size} bytes, not {shard_sizes[name]}"
            raise PreparedFolderError(
                "a file of the prepared folder is missing or damaged", where=file, got=got, do=again
            )
    return manifest


def _check_types(manifest: Manifest) -> None:
    for field in ("config", "counts", "unused_keys", "tokens"):
        if not isinstance(getattr(manifest, field), dict):
            raise TypeError(f"{field} is no object")
