"""Hashes that name a prepared folder: of content, never of a path or a time."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.conversation import Conversation
from pipeline.errors import InputError

_LENGTH = 24


def key_of(*parts: Any) -> str:
    """Return a short name of some JSON values: 24 hexadecimal digits of their SHA-256."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_LENGTH]


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            "a file cannot be read",
            where=path,
            got=error.strerror or error,
            do="check its permissions",
        ) from error


class ContentHash:
    """The hash of records in order: accepted ones by id and turns, others by their reason."""

    def __init__(self) -> None:
        """Start with no record."""
        self._hash = hashlib.sha256()

    def accepted(self, conversation: Conversation) -> None:
        """Take in a record that was kept."""
        self._update("accepted", conversation.id, *(t for turn in conversation.turns for t in turn))

    def rejected(self, reason: str, record: str) -> None:
        """Take in a record that was left out."""
        self._update("rejected", reason, record)

    def hexdigest(self) -> str:
        """Return the hash of all that was taken in."""
        return self._hash.hexdigest()

    def _update(self, *texts: str) -> None:
        self._hash.update(framed(texts))


def framed(texts: Iterable[str]) -> bytes:
    """Return texts as bytes with their lengths before them: no two sequences look alike."""
    parts = [text.encode("utf-8") for text in texts]
    return repr([len(part) for part in parts]).encode("ascii") + b"".join(parts)
