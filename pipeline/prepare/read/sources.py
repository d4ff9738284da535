"""Paths, as a user gives them, to the files that are read, in order.

A path that exists is that path and no glob; a folder gives its files by name; a glob gives what
it matches, sorted. In a folder, and among what a glob matches, a file that is no records' file is
passed over with one line; a file that was named is always read. A URL is the same on a file system
that is somewhere else.
"""

import functools
import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config_fields import is_url
from pipeline.errors import InputError
from pipeline.logs import note
from pipeline.prepare.read.formats import looks_like_records
from pipeline.store.remote import AnyPath, RemotePath

FileState = tuple[int, int, int]
"""What changes when a file does: its size, and the times of its content's and its own change."""


@dataclass(frozen=True)
class Source:
    """One input file and the name under which reports speak of it (never an absolute path)."""

    path: AnyPath
    name: str

    def state(self) -> FileState:
        """Return what changes when the file does."""
        stat = self.path.stat()
        # Of a URL only the size is known.
        return stat.st_size, getattr(stat, "st_mtime_ns", 0), getattr(stat, "st_ctime_ns", 0)

    @functools.cached_property
    def stem(self) -> str:
        """The name without format and compression suffixes: ``chats`` of chats.json.gz."""
        stem = self.name.rpartition("/")[2]
        for suffixes in (_COMPRESSIONS, _FORMATS):
            for suffix in suffixes:
                if stem.lower().endswith(suffix) and len(stem) > len(suffix):
                    stem = stem[: -len(suffix)]
                    break
        return stem


_COMPRESSIONS = (".gz", ".gzip", ".zst", ".zstd", ".xz", ".bz2")
_FORMATS = (".json", ".jsonl", ".ndjson", ".parquet", ".pq")


def find_sources(data_path: Sequence[str]) -> list[Source]:
    """Return the files behind some paths, in the order given.

    Raises:
        InputError: A path is missing, a glob matches nothing, or a folder holds no records' file.
    """
    paths = list[AnyPath]()
    for given in data_path:
        try:
            paths += _expand(given)
        except OSError as error:  # a name too long, a folder that may not be listed
            raise InputError(
                "a path cannot be read",
                where=given[:200],
                got=error.strerror or error,
                do="check --data-path",
            ) from error
    return [Source(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _expand(given: str) -> Sequence[AnyPath]:
    if not given:
        raise InputError(
            "no such path",
            where="--data-path",
            got="an empty name",
            do="name a file, a folder or a glob",
        )
    path: AnyPath = Path(given)
    if is_url(given) and not path.exists():
        path = RemotePath.of(given)
    if path.is_dir():
        files = _records_files(sorted(path.iterdir(), key=lambda child: child.name))
        if not files:
            raise InputError(
                "a folder without a file of records",
                where=given,
                got="no JSON, JSON Lines or Parquet in it",
                do="give the folder that holds the export",
            )
        return files
    if path.exists():
        if not path.is_file():
            raise InputError(
                "not a regular file",
                where=given,
                got="a pipe or a device",
                do="write it to disk first: files are read more than once",
            )
        return [path]
    if not glob.has_magic(given):
        raise InputError("no such path", where=given, got="nothing there", do="check --data-path")
    matches = path.glob() if isinstance(path, RemotePath) else _local_glob(given)
    files = _records_files(matches)
    if not files:
        got = "no file of records among its matches" if matches else "no match"
        raise InputError(
            "a glob that matches nothing", where=given, got=got, do="check --data-path"
        )
    return files


def _local_glob(pattern: str) -> list[Path]:
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]


def _records_files(paths: Sequence[AnyPath]) -> list[AnyPath]:
    """Return the files that hold records; say which others were passed over."""
    kept = []
    for path in paths:
        if path.is_file() and looks_like_records(path):
            kept.append(path)
        else:
            note(f"passed over, no JSON, JSON Lines or Parquet file: {path}")
    return kept


def _names(paths: Sequence[AnyPath]) -> list[str]:
    """Return for each path as many of its last parts as tell it from the others."""
    parts = [(path.absolute() if isinstance(path, Path) else path).parts for path in paths]
    size, names = 1, dict[tuple[str, ...], str]()
    while len(names) < len(set(parts)):
        unnamed = [p for p in dict.fromkeys(parts) if p not in names]
        same_ending = Counter(p[-size:] for p in dict.fromkeys(parts))
        names |= {p: "/".join(p[-size:]) for p in unnamed if same_ending[p[-size:]] == 1}
        size += 1
    # A file name may hold any bytes; what is written about it is UTF-8.
    return [os.fsencode(names[p]).decode("utf-8", "replace") for p in parts]


def states_of(sources: Sequence[Source]) -> list[FileState]:
    """Return what changes when the files do.

    Raises:
        InputError: One is not there any more.
    """
    try:
        return [source.state() for source in sources]
    except OSError as error:
        raise InputError(
            "a file cannot be read",
            where=error.filename,
            got=error.strerror or error,
            do="check that it stays where it is",
        ) from error
