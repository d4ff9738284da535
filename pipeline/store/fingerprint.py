"""Hashes that name a prepared folder: of content, never of a path or a time."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.console.progress import advance
from pipeline.conversation import Conversation, Turn
from pipeline.store.remote import AnyPath, open_binary, unreadable

_LENGTH = 24
# In bytes. The fresh memory of a larger buffer costs as much as the hash. A thread that hashes
# beside one that works in Python would want a larger one: it waits for it after each piece.
_HASHED_AT_ONCE = 1 << 17


def key_of(*parts: Any) -> str:
    """Return a short name of some JSON values: 24 hexadecimal digits of their SHA-256."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    # A path may hold bytes that are no UTF-8, which Python has as lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_LENGTH]


def sha256_of_file(path: AnyPath) -> str:
    """Return the SHA-256 of a file's bytes; a remote one is streamed once for it.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        digest, buffer = hashlib.sha256(), bytearray(_HASHED_AT_ONCE)
        with open_binary(path) as file:
            while size := file.readinto(buffer):
                digest.update(memoryview(buffer)[:size])
                advance(size)
        return digest.hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


class ContentHash:
    """The hash of all records in their order and, beside them, of the conversations in theirs."""

    def __init__(self) -> None:
        self._records, self._conversations = hashlib.sha256(), hashlib.sha256()

    def records(self, frames: str) -> None:
        """Take in a record, or several one after another, as the functions below frame them."""
        self._records.update(frames.encode("utf-8"))

    def conversation(self, digest: bytes) -> None:
        """Take in a conversation's turns, which are those of the records it was joined of."""
        self._conversations.update(digest)

    def hexdigest(self) -> str:
        """Return the hash of all that was taken in."""
        return key_of(self._records.hexdigest(), self._conversations.hexdigest())


def accepted_frame(conversation: Conversation) -> str:
    """Return what the hash takes of a record; its turns come with its conversation."""
    untrained = [str(turn) for turn in sorted(conversation.untrained)]
    tools = [conversation.tools] if conversation.tools else []
    return _framed(["accepted", conversation.id, str(len(conversation.turns)), *untrained, *tools])


def rejected_frame(reason: str, content: str) -> str:
    """Return what the hash takes of a record that was left out."""
    return _framed(["rejected", reason, sha256_of_text(content)])


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def turns_digest(turns: Sequence[Turn], tools: str = "") -> bytes:
    """Return 16 bytes of the SHA-256 of roles, texts and tools: two with the same are repeats."""
    texts = [turn.text for turn in turns]
    framed = _framed([turn.role for turn in turns] + texts + ([tools] if tools else []))
    return hashlib.sha256(framed.encode()).digest()[:16]


def _framed(texts: Sequence[str]) -> str:
    """Return texts as one with their lengths before them: no two sequences look alike."""
    return f"{list(map(len, texts))}{''.join(texts)}"
