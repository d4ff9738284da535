"""Hashes that name a prepared folder: of content, never of a path or a time."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.conversation import Turn
from pipeline.errors import InputError
from pipeline.store.remote import AnyPath

_LENGTH = 24


def key_of(*parts: Any) -> str:
    """Return a short name of some JSON values: 24 hexadecimal digits of their SHA-256."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_LENGTH]


def sha256_of_file(path: AnyPath) -> str:
    """Return the SHA-256 of a file's bytes; a remote one is streamed once for it.

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

    def accepted(self, record_id: str, num_turns: int) -> None:
        """Take in a record that was kept; its turns come with its conversation."""
        self._update("accepted", record_id, str(num_turns))

    def conversation(self, digest: bytes) -> None:
        """Take in the turns of a conversation, which are those of the records it was joined of."""
        self._update("conversation", digest.hex())

    def rejected(self, reason: str, record: str) -> None:
        """Take in a record that was left out."""
        self._update("rejected", reason, record)

    def hexdigest(self) -> str:
        """Return the hash of all that was taken in."""
        return self._hash.hexdigest()

    def _update(self, *texts: str) -> None:
        self._hash.update(_framed(texts))


def turns_digest(turns: Sequence[Turn]) -> bytes:
    """Return 16 bytes of the SHA-256 of roles and texts: what makes two conversations the same."""
    framed = _framed([turn.role for turn in turns] + [turn.text for turn in turns])
    return hashlib.sha256(framed).digest()[:16]


def _framed(texts: Sequence[str]) -> bytes:
    """Return texts as bytes with their lengths before them: no two sequences look alike."""
    return f"{list(map(len, texts))}{''.join(texts)}".encode()
