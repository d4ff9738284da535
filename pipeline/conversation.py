"""The nouns of this project, and no more: what a conversation is made of.

A **turn** is a role and a text. A **conversation** is turns in order, with the id of its first
part. A **record** (one JSON object of an export) is a whole conversation or a part of one: the
public ShareGPT files are cut into parts whose ids are ``BASE_N``, N the index of the part's
first turn. A **pair** is one assistant turn as the target and all before it as the source.
"""

import enum
import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple


class Role(enum.StrEnum):
    """Who speaks. The value is the word in the turn's tag, ``### Human:``."""

    HUMAN = "Human"
    ASSISTANT = "Assistant"
    SYSTEM = "System"
    TOOL = "Tool"


ROLES_BY_NAME: dict[str, Role] = {
    **dict.fromkeys(("human", "user", "prompter"), Role.HUMAN),
    **dict.fromkeys(
        (
            *("gpt", "chatgpt", "bing", "bard", "assistant", "model", "ai", "bot"),
            *("function_call", "tool_call"),
        ),
        Role.ASSISTANT,
    ),
    **dict.fromkeys(("system", "developer"), Role.SYSTEM),
    **dict.fromkeys(("tool", "function", "observation", "tool_response"), Role.TOOL),
}
"""Speaker names in lower case, as exports write them."""


class Turn(NamedTuple):
    """One message."""

    role: Role
    text: str


@dataclass(slots=True)
class Conversation:
    """Turns in order; ``start`` is the index of the first among the uncut conversation's."""

    id: str
    turns: list[Turn]
    tools: str = ""
    """The tools that the assistant may call, as one line of JSON; empty: none."""
    untrained: frozenset[int] = frozenset()
    """Indices of the assistant's turns that are history only."""

    @property
    def start(self) -> int:
        """The index of the first turn among the uncut conversation's turns."""
        return split_part_id(self.id)[1] or 0


_PART_ID = re.compile(r"(.+)_([0-9]+)", re.DOTALL)
# The ids that sharegpt.com gave: a hand-made base is hardly ever seven characters like these.
_SITE_BASE = re.compile(r"(?=[a-z_-]*[A-Z0-9])[A-Za-z0-9_-]{7}")


def split_part_id(conversation_id: str) -> tuple[str, int | None]:
    """Split ``BASE_N`` into its base and index.

    >>> split_part_id("QWJhYvA_14")
    ('QWJhYvA', 14)
    >>> split_part_id("chats:3")
    ('chats:3', None)
    """
    match = _PART_ID.fullmatch(conversation_id)
    # More digits than any index has would be a number, not an index.
    if match is None or len(match[2]) > 9:
        return conversation_id, None
    return match[1], int(match[2])


def is_site_base(base: str) -> bool:
    """Return whether a base has the form of the site's ids.

    >>> [is_site_base(base) for base in ("QWJhYvA", "identity", "samples", "sample1", "conv_17")]
    [True, False, False, True, True]
    """
    return _SITE_BASE.fullmatch(base) is not None


def split_key(conversation_id: str) -> str:
    """Return what decides a conversation's split: its base where that is surely one, else its id.

    >>> split_key("QWJhYvA_14"), split_key("sample_14")
    ('QWJhYvA', 'sample_14')
    """
    base, index = split_part_id(conversation_id)
    return base if index is not None and is_site_base(base) else conversation_id


_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


def has_visible(text: str) -> bool:
    r"""Return whether a text has a character that can be seen: no white space, control or format.

    >>> has_visible(" \u200b\ufeff\n"), has_visible("\u200b.")
    (False, True)
    """
    if text[:1].isalnum():
        return True
    category = unicodedata.category
    return any(not c.isspace() and category(c) not in _INVISIBLE for c in text)
