"""What reading a file finds: records, faults, and passages that are known from earlier runs."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.conversation import Place
from pipeline.store.passages import Passage


class NumberText(str):
    """A JSON number as it was written."""


@dataclass(slots=True)
class Record:
    """One whole record: position in the file, value, and JSON text (Parquet has none)."""

    position: int
    value: Any
    text: str | None
    offset: int | None = field(default=None, compare=False)
    """The byte at which it begins, where a file can be read from any byte on."""


@dataclass(slots=True)
class Fault:
    """A place that is no record: the reason's name, what is wrong, and the text if there is any."""

    position: int
    reason: str
    detail: str
    text: str | None = None
    offset: int | None = field(default=None, compare=False)


@dataclass(slots=True)
class Known:
    """A passage that stands at a place of a file, letter for letter.

    Whoever takes it sets ``taken``; then reading goes on behind it, else at its first record.
    """

    passage: Passage
    position: int
    """Of its first record in the file."""
    offset: int
    """The byte at which it begins."""
    following: Record
    """The record behind it, which tells whether the passage ends where it ended."""
    place: Place | None = None
    following_id: str = ""
    following_size: int = 0
    """Of the conversation in the following record. These three are set by whoever parses it."""
    taken: bool = False
