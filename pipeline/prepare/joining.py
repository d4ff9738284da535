"""Parts to whole conversations."""

from collections.abc import Iterable, Iterator

from pipeline.conversation import Conversation, split_part_id


def join_parts(records: Iterable[Conversation]) -> Iterator[Conversation]:
    """Join each record to the one before it where it goes on with the same conversation.

    The public ShareGPT files are cut into parts. A part ``BASE_N`` joins the conversation right
    before it if that has the same BASE, covers turns [s, e) with s < N <= e, and the turns that
    both hold agree to the letter. Only the conversation at hand is kept in memory.
    """
    current: Conversation | None = None
    for record in records:
        if current is not None and _continues(current, record):
            held = current.start + len(current.turns) - record.start
            current.turns.extend(record.turns[held:])
            continue
        if current is not None:
            yield current
        current = Conversation(record.id, list(record.turns))
    if current is not None:
        yield current


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
