"""Parts to whole conversations."""

from collections.abc import Iterable, Iterator

from pipeline.conversation import Conversation, split_part_id
from pipeline.prepare.found import Known


def join_parts(records: Iterable[Conversation | Known]) -> Iterator[Conversation | Known]:
    """Join each record to the one before it where it goes on with the same conversation.

    The public ShareGPT files are cut into parts. A part ``BASE_N`` joins the conversation right
    before it if that has the same BASE, covers turns [s, e) with s < N <= e, and the turns that
    both hold agree to the letter. Only the conversation at hand is kept in memory.

    A passage that is known is passed on where nothing can join at its beginning or its end.
    """
    current: Conversation | None = None
    for record in records:
        if isinstance(record, Known):
            if _stands_alone(record, current):
                if current is not None:
                    yield current
                current = None
                yield record
            continue
        if current is not None and _continues(current, record):
            held = current.start + len(current.turns) - record.start
            current.turns.extend(record.turns[held:])
            continue
        if current is not None:
            yield current
        current = Conversation(record.id, list(record.turns), record.place)
    if current is not None:
        yield current


def _stands_alone(known: Known, before: Conversation | None) -> bool:
    passage, behind = known.passage, known.next_conversation
    assert behind is not None, "it was looked at"
    behind_is_free = _base(passage.last_id) != _base(behind.id)
    return behind_is_free and (before is None or _base(before.id) != _base(passage.first_id))


def _base(conversation_id: str) -> str:
    return split_part_id(conversation_id)[0]


def _continues(current: Conversation, record: Conversation) -> bool:
    base, index = split_part_id(record.id)
    current_base, start = split_part_id(current.id)
    if index is None or start is None or base != current_base:
        return False
    skip = index - start
    if not 0 < skip <= len(current.turns):
        return False
    held = current.turns[skip : skip + len(record.turns)]
    return held == record.turns[: len(held)]
