"""Parts to whole conversations.

The public ShareGPT files are cut into parts for short context windows. A part's id is ``BASE_N``,
N the index of its first turn. It is joined to the conversation right before it where it surely
continues it: ids like ``identity_0``, ``identity_2`` of a hand-made file are no proof.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.conversation import Conversation, is_site_base, split_part_id


def joins(previous: Conversation, record: Conversation) -> bool:
    """Return whether a record continues the conversation right before it.

    Both have the same BASE; the conversation covers turns [s, e), and s < N <= e; the turns that
    both hold agree exactly; and they share a turn, or BASE has the form of the site's ids.
    """
    base, index = split_part_id(record.id)
    previous_base, start = split_part_id(previous.id)
    if index is None or start is None or base != previous_base:
        return False
    skip = index - start
    if not 0 < skip <= len(previous.turns):
        return False
    held = previous.turns[skip : skip + len(record.turns)]
    return held == record.turns[: len(held)] and (bool(held) or is_site_base(base))


def join(previous: Conversation, record: Conversation) -> None:
    """Append to a conversation the turns of a record that joins it, but for those it holds.

    The tools stay those of the first part.
    """
    skip = record.start - previous.start
    held = len(previous.turns) - skip
    previous.turns.extend(record.turns[held:])
    previous.untrained |= {skip + i for i in record.untrained if i >= held}


def join_parts(records: Iterable[Conversation]) -> Iterator[Conversation]:
    """Join each record to the one before it where it continues the same conversation.

    Only the conversation at hand is kept in memory, and the records are not changed.
    """
    current: Conversation | None = None
    for record in records:
        if current is not None and joins(current, record):
            join(current, record)
            continue
        if current is not None:
            yield current
        current = replace(record, turns=list(record.turns))
    if current is not None:
        yield current
