"""Passages: which text a part was made of, so that the same text is known without parsing it.

    .parts/passages/3f9c….json

A passage is what stands in a file from one part's first record to the next part's. All that a run
learns by reading it lies here: what the fingerprint takes of it, what was left out, and which part
holds its rows. It is found by a few of its bytes and told by its SHA-256.
"""

import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.checksummed_json import read_checked, write_checked
from pipeline.store.fingerprint import key_of

PASSAGE_SCHEMA = 1
"""Part of the settings, so that what another version wrote is not found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A record that was left out, as ``rejected.jsonl`` has it but for the file's name."""

    position: int
    """In the file; in a passage, counted from the passage's first record."""
    reason: str
    detail: str
    body: str
    """The record, or its text, as a member of a JSON object; empty where there is neither."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A passage, and what reading it gives."""

    size: int
    """In bytes."""
    sha256: str
    part: str
    """Key of the part that holds its rows."""
    part_size: int
    ends_part: bool
    """Whether the part ends by its own content, not only because it would be too long with more."""
    mark_behind: str
    """A few of the bytes that follow it, in hexadecimal digits."""
    first_size: int
    """Of its first conversation and, in ``part_size``, of all that are kept: as parts count."""
    first_id: str
    last_id: str
    """Of its first and its last conversation."""
    records: int
    frames: str
    """What the fingerprint takes of its records."""
    conversations: list[tuple[str, bool]]
    """The digest of each, in hexadecimal digits, and whether it is kept: no repeat."""
    rejections: list[Rejection]


class PassageStore:
    """The passages below one folder, as one preparation sees them.

    Args:
        folder: Where they are kept.
        temporary: Where they are written before they are whole.
        settings: All that decides what reading a text gives, and which part it becomes.
    """

    def __init__(self, folder: Path, temporary: Path, *settings: Any) -> None:
        """List what is there."""
        self._folder, self._temporary = folder, temporary
        self._settings = key_of(PASSAGE_SCHEMA, *settings)
        self._names = set[str]()
        with contextlib.suppress(OSError):
            self._names = {path.stem for path in folder.glob("[!.]*.json")}

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._names)

    def find(self, kind: str, mark: bytes) -> Passage | None:
        """Return the passage of a kind of file that has this mark, if one is whole."""
        name = self._name(kind, mark)
        if name not in self._names:
            return None
        fields = read_checked(self._path(name))
        with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
            return None if fields is None else _parsed(fields)
        return None

    def write(self, kind: str, mark: bytes, passage: Passage) -> None:
        """Keep a passage, in place of another one with the same mark.

        Raises:
            OutputError: It cannot be written.
        """
        path = self._path(self._name(kind, mark))
        write_checked(path, dataclasses.asdict(passage), self._temporary)

    def _name(self, kind: str, mark: bytes) -> str:
        # One for each record that is read: not by key_of, which takes ten times as long.
        return hashlib.sha256(f"{self._settings}{kind} ".encode() + mark).hexdigest()[:24]

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _parsed(fields: dict[str, Any]) -> Passage:
    rejections = [Rejection(**values) for values in fields.pop("rejections")]
    conversations = [(str(digest), bool(kept)) for digest, kept in fields.pop("conversations")]
    if any(len(bytes.fromhex(digest)) != 16 for digest, _ in conversations):
        raise ValueError("no digest")
    numbers = (fields[name] for name in ("size", "records", "part_size", "first_size"))
    if any(not isinstance(number, int) or number <= 0 for number in numbers):
        raise ValueError("no size")
    return Passage(rejections=rejections, conversations=conversations, **fields)


def part_of(path: Path) -> str:
    """Return the key of the part that a passage's file speaks of; empty if it is damaged."""
    return str((read_checked(path) or {}).get("part", ""))
