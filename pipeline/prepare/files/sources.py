"""Paths, as a user gives them, to the files that are read, in order.

A path that exists is that path and no glob; a folder gives the files below it, by path; a glob
gives what it matches, sorted. In a folder, and among what a glob matches, a file that is no
records' file is skipped with one line; a file that was named has to be one. A URL is the same
on a file system that is somewhere else.
"""

import glob
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.fields import is_url
from pipeline.console.logs import note
from pipeline.errors import InputError
from pipeline.store import remote
from pipeline.store.remote import AnyPath

FileState = tuple[int, int, int, int]
"""What changes when a file does: its size, the times of its content's and its own change, and its
number on the disk."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input file."""

    path: AnyPath
    name: str
    """How reports speak of it; never an absolute path."""
    given: str = ""
    """The path, as a user gave it, that it was found by."""
    is_named: bool = True
    """Whether that path is the file itself, and no folder or glob."""
    split: str | None = None
    """The split that it was given for."""
    state: FileState = (0, 0, 0, 0)
    """What it was like when it was found."""

    def identity(self) -> str:
        """Return the whole path."""
        return str(self.path.absolute() if isinstance(self.path, Path) else self.path)

    def below(self) -> str:
        """Return the path from the folder that was given on; of what a glob matches, the name."""
        is_local = isinstance(self.path, Path)
        above = _parts(Path(self.given) if is_local else self.given.rstrip("/"))
        parts = _parts(self.path)
        return "/".join(parts[len(above) :] if parts[: len(above)] == above else parts[-1:])

    def state_now(self) -> FileState:
        """Return what it is like now.

        Raises:
            InputError: It is not there any more.
        """
        return _state(self.path)


# What Hugging Face writes beside data.
_OTHERS_OWN = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_TICK = 0.05  # seconds; a disk that counts whole seconds is given two
_HELD_OUT = re.compile(r"(?:^|[-_./])(test|validation|eval|dev)(?:[-_./]|$)", re.IGNORECASE)


def find_sources(data_path: Sequence[str], held_out: Sequence[str] = ()) -> list[Source]:
    """Return the files that some paths name, in the order given; none is opened.

    Args:
        data_path: Files, folders and globs.
        held_out: The same, of the eval split; they come first. Where there are none, no file is
            given for a split.

    Raises:
        InputError: A path is missing, or a glob matches nothing.
    """
    found = list[tuple[AnyPath, str, bool, str | None]]()
    split = "train" if held_out else None
    for given, split_of in [*((g, "eval") for g in held_out), *((g, split) for g in data_path)]:
        try:
            paths, is_named = _expand(given)
        except OSError as error:  # a name too long, a folder that may not be listed
            raise InputError(
                "a path cannot be read",
                where=given[:200],
                got=error.strerror or error,
                do="check --data-path",
            ) from error
        found += [(path, given, is_named, split_of) for path in paths]
    names = _names([path for path, *_ in found])
    return [
        Source(path, name, given, is_named, split_of, _state(path))
        for (path, given, is_named, split_of), name in zip(found, names, strict=True)
    ]


def _state(path: AnyPath) -> FileState:
    """Return what changes when a file does; of a URL, only the size is known."""
    if not isinstance(path, Path):
        return (remote.info(path) or {}).get("size") or 0, 0, 0, 0
    try:
        stat = path.stat()
    except OSError as error:
        raise remote.unreadable(path, error) from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def note_held_out(sources: Sequence[Source]) -> None:
    """Say that some files of folders look like those that a model should not be trained on."""
    # Most paths have no such word anywhere, and a search is faster than to take them apart.
    chosen = [s for s in sources if not s.is_named and _HELD_OUT.search(str(s.path))]
    held_out = [path for source in chosen if _HELD_OUT.search(path := source.below())]
    if held_out:
        shown = ", ".join(held_out[:3]) + (f" and {len(held_out) - 3} more" if held_out[3:] else "")
        note(f"used for training like the other files: {shown}; --eval-data-path keeps them apart")


def _expand(given: str) -> tuple[Sequence[AnyPath], bool]:
    """Return the files that a path leads to, and whether it names one itself."""
    if not given:
        raise InputError(
            "no such path",
            where="--data-path",
            got="an empty name",
            do="name a file, a folder or a glob",
        )
    path: AnyPath = Path(given)
    if is_url(given) and not path.exists():
        path = remote.remote_path(given)
    kind = _type(path)
    if kind == "directory":
        return _files_below(given, path), False
    if kind == "file":
        return [path], True
    if kind is not None:
        raise InputError(
            "not a regular file",
            where=given,
            got="a pipe or a device",
            do="write it to disk first: files are read more than once",
        )
    if not glob.has_magic(given):
        raise InputError(
            "no such path", where=given, got="nothing there", do=f"check --data-path{_hint(given)}"
        )
    matches: Sequence[AnyPath]
    if isinstance(path, Path):
        matches = [Path(match) for match in sorted(glob.glob(given, recursive=True))]
    else:
        matches = remote.glob(path)
    files = [match for match in matches if _type(match) == "file"]
    if not files:
        got = "only folders match" if matches else "no match"
        raise InputError(
            "a glob that matches nothing", where=given, got=got, do="check --data-path"
        )
    return files, False


def _hint(given: str) -> str:
    """Return how a data set of the hub is called, where a path looks as if one was meant."""
    if given.startswith("hf://"):
        return ": hf://datasets/OWNER/NAME; a private data set needs hf auth login"
    if re.fullmatch(r"[\w-]+/[\w-]+", given):
        return f"; a data set of the hub is hf://datasets/{given}"
    return ""


def _type(path: AnyPath) -> str | None:
    """Return whether a path is a ``file``, a ``directory``, or something else; None: it is not."""
    if not isinstance(path, Path):
        return (remote.info(path) or {}).get("type")
    if path.is_dir():
        return "directory"
    return ("file" if path.is_file() else "other") if path.exists() else None


def _files_below(given: str, folder: AnyPath) -> Sequence[AnyPath]:
    """Return the files below a folder by path, but for hidden ones and Hugging Face's own."""
    files = list[tuple[tuple[str, ...], AnyPath]]()
    if not isinstance(folder, Path):
        below = remote.files_below(folder)
        files = [(tuple(name.split("/")), folder / name) for name in below]
    else:
        for root, folders, names in _walk(folder):
            if {"dataset_dict.json", "manifest.json"} <= set(names):
                if root == str(folder):
                    raise InputError(
                        "a prepared folder, not records",
                        where=given,
                        got="a folder that duet prepare made",
                        do="give it to duet fit, or give prepare the files that it was made of",
                    )
                note(f"skipped, a prepared folder: {root}")
                names, folders[:] = [], []
            parts = Path(root).relative_to(folder).parts
            files += [((*parts, name), Path(root, name)) for name in names]
    chosen = sorted(
        (parts, path)
        for parts, path in files
        if parts[-1] not in _OTHERS_OWN
        and not any(part.startswith(".") for part in parts)
        and (not isinstance(path, Path) or _is_regular(path))
    )
    if not chosen:
        raise InputError(
            "no file of records",
            where=given,
            got="no file in it" if not files else "only hidden files, pipes and broken links",
            do="give the folder that holds the export: JSON, JSON Lines, Parquet or Arrow",
        )
    return [path for _, path in chosen]


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield what ``os.walk`` does, through links to folders too; each folder once."""
    seen = set[str]()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield root, folders, names


def _is_regular(path: Path) -> bool:
    """Return whether a path of a folder is a file; say it of a link that leads nowhere."""
    if path.is_file():
        return True
    if path.is_symlink() and not path.exists():
        note(f"skipped, a broken link: {path.name}")
    return False


def _raise(error: OSError) -> None:
    raise error


def _names(paths: Sequence[AnyPath]) -> list[str]:
    """Return for each path as many of its last parts as tell it from the others."""
    parts = [_parts(path.absolute() if isinstance(path, Path) else path) for path in paths]
    size, names = 1, dict[tuple[str, ...], str]()
    while len(names) < len(set(parts)):
        unnamed = [p for p in dict.fromkeys(parts) if p not in names]
        same_ending = Counter(p[-size:] for p in dict.fromkeys(parts))
        names |= {p: "/".join(p[-size:]) for p in unnamed if same_ending[p[-size:]] == 1}
        size += 1
    # A file name may hold any bytes; what is written about it is UTF-8.
    return [os.fsencode(names[p]).decode("utf-8", "replace") for p in parts]


def _parts(path: object) -> tuple[str, ...]:
    """Return the parts of a path, or of a URL as it is written."""
    return path.parts if isinstance(path, Path) else tuple(str(path).split("/"))


def is_settled(state: FileState) -> bool:
    """Return whether a file's last change is so long ago that a later one would show."""
    changed = max(state[1:3])
    tick = _TICK if changed % 1_000_000_000 else 2.0
    return 0 < changed < (time.time() - tick) * 1e9
