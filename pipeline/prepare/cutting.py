"""Conversations to parts: the pieces in which they are encoded, kept and found again.

Parts are cut by content: whether one ends behind a conversation depends on that conversation's
hash alone, so new records in the middle of a file change the part that they are in, and the parts
behind it come out as before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.found import Known, RereadError
from pipeline.store.fingerprint import key_of

# In characters; a turn counts for some more, since it may be a row. A cut is looked for behind
# MIN; MEAN is what parts are long on average.
MIN_SIZE, MEAN_SIZE, MAX_SIZE = 1 << 20, 1 << 22, 1 << 23
_TURN_SIZE = 64


def part_sizes() -> tuple[int, int, int]:
    """Return all that decides where a part ends, but for its conversations."""
    return MIN_SIZE, MEAN_SIZE, MAX_SIZE


def mark_reach() -> int:
    """Return how far any part's text is sure to go, in bytes: as far as its mark looks."""
    return MIN_SIZE >> 6


_ROLES = tuple(Role)
_CODES = {role: code for code, role in enumerate(_ROLES)}


@dataclass(slots=True)
class Part:
    """Conversations in order, with the digest of each one's turns."""

    conversations: list[Conversation] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    size: int = 0

    @property
    def ends_itself(self) -> bool:
        """Whether its last conversation ends it, whatever comes behind."""
        size = conversation_size(self.conversations[-1])
        return self.size >= MIN_SIZE and _ends_part(self.digests[-1], size)

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary in a form that takes a third of the time."""
        packed = [
            (
                c.id,
                bytes([_CODES[turn.role] for turn in c.turns]),
                [turn.text for turn in c.turns],
                c.tools,
                c.untrained,
            )
            for c in self.conversations
        ]
        return (_unpacked, (packed, self.digests, self.size))

    def key(self, *settings: object) -> str:
        """Return the name of the rows that these conversations have under some settings."""
        ids = [conversation.id for conversation in self.conversations]
        untrained = {
            i: sorted(c.untrained) for i, c in enumerate(self.conversations) if c.untrained
        }
        return key_of(ids, [digest.hex() for digest in self.digests], untrained, *settings)


def cut_parts(
    conversations: Iterable[tuple[Conversation, bytes] | Known],
) -> Iterator[Part | Known]:
    """Yield parts of about four million characters; a longer conversation is one of its own.

    A passage that is known is taken, and yielded, where it is a part of this input too: where one
    begins with it, and it ends one by its own content, or because of what follows as before.

    Raises:
        RereadError: What followed as before did not end it: it turned out to be a repeat.
    """
    part, full = Part(), 0
    for item in conversations:
        if isinstance(item, Known):
            passage = item.passage
            if part.size and part.size + passage.first_size > MAX_SIZE:
                yield part
                part = Part()
            if not part.size and (passage.ends_part or item.is_followed_as_before):
                _check_ended(full, passage.first_size)
                full = 0 if passage.ends_part else passage.part_size
                item.taken = True
                yield item
            continue
        conversation, digest = item
        size = conversation_size(conversation)
        _check_ended(full, size)
        full = 0
        if part.size and part.size + size > MAX_SIZE:
            yield part
            part = Part()
        part.conversations.append(conversation)
        part.digests.append(digest)
        part.size += size
        if part.size >= MIN_SIZE and _ends_part(digest, size):
            yield part
            part = Part()
    if part.conversations:
        yield part


def _check_ended(full: int, size: int) -> None:
    """Check that a part that was taken as full has no room for what comes behind it."""
    if full and full + size <= MAX_SIZE:
        raise RereadError("a repeat stands where a part ended before")


def conversation_size(conversation: Conversation) -> int:
    """Return how much a conversation counts."""
    return sum(len(turn.text) + _TURN_SIZE for turn in conversation.turns)


def _ends_part(digest: bytes, size: int) -> bool:
    # Longer conversations end a part more often, so that its length does not depend on theirs.
    return int.from_bytes(digest[:8], "big") * (MEAN_SIZE - MIN_SIZE) < size << 64


_Packed = tuple[str, bytes, list[str], str, frozenset[int]]


def _unpacked(packed: list[_Packed], digests: list[bytes], size: int) -> Part:
    conversations = [
        Conversation(
            name,
            [Turn(_ROLES[code], text) for code, text in zip(codes, texts, strict=True)],
            tools,
            untrained,
        )
        for name, codes, texts, tools, untrained in packed
    ]
    return Part(conversations, digests, size)
