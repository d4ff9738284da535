"""What stands in a chunk beside its rows: the words that who makes it and who reads it share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.conversation import Conversation, Role, Turn
from pipeline.store.fingerprint import turns_digest

TRAIN, EVAL = "train", "eval"
REPEAT = -1
"""The number of rows of a conversation that is left out."""
_DIGEST_SIZE = 16


@dataclass(slots=True)
class Edit:
    """What is changed of a chunk because of the segments around its own."""

    start: Conversation | None = None
    """Takes the place of the first conversation, which continues one of an earlier segment."""
    drops_last: bool = False
    """The last conversation goes on in a later segment, and is part of that one's first."""
    repeats: tuple[int, ...] = ()
    """Conversations that repeat earlier ones, counted from 0."""

    def __bool__(self) -> bool:
        """Return whether anything is changed."""
        return self.start is not None or self.drops_last or bool(self.repeats)

    def digests(self, content: dict[str, Any]) -> list[bytes]:
        """Return the digest of each conversation that the chunk has then, repeats too."""
        found = list(_digests_of(content))
        if self.start is not None:
            found[0] = turns_digest(self.start.turns, self.start.tools)
        return found[:-1] if self.drops_last else found


def _digests_of(content: dict[str, Any]) -> Iterator[bytes]:
    digests = bytes.fromhex(content["digests"])
    for at in range(0, len(digests), _DIGEST_SIZE):
        yield digests[at : at + _DIGEST_SIZE]


def packed(found: Conversation) -> list[Any]:
    """Return a conversation as JSON has it."""
    return [found.id, found.turns, found.tools, sorted(found.untrained)]


def unpacked(found: list[Any]) -> Conversation:
    """Return what was packed."""
    name, turns, tools, untrained = found
    return Conversation(
        name, [Turn(Role(role), text) for role, text in turns], tools, frozenset(untrained)
    )
