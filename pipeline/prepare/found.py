"""What reading a file finds: records, faults, and passages that are known from earlier runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.conversation import Conversation, Place
from pipeline.store.passages import Passage


class RereadError(Exception):
    """What is known of some text turned out not to help: all of it has to be read."""


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
    """The record behind it."""
    is_followed_as_before: bool = False
    """Whether that is what was there before, as far as its mark tells."""
    place: Place | None = None
    next_conversation: Conversation | None = None
    """In the following record. These two are set by whoever parses it."""
    taken: bool = False


FindAt = Callable[[int], Passage | None]
"""Takes the byte at which a record begins; returns the passage that stands there, if any."""
