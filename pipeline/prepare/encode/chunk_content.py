"""What stands in a chunk beside its rows: the words that who makes it and who reads it share."""

from collections.abc import Iterator
from typing import Any

from pipeline.conversation import Conversation, Role, Turn

TRAIN, EVAL = "train", "eval"
REPEAT = -1
"""The number of rows of a conversation that is left out."""
_DIGEST_SIZE = 16


def digests_of(content: dict[str, Any]) -> Iterator[bytes]:
    """Yield the digest of each conversation of a chunk."""
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
