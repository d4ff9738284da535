"""A conversation's id: its record's own, or one made of its turns."""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

from pipeline.conversation import Turn
from pipeline.prepare.read.values import clean, kind_of, wrong_shape

ID_KEYS = ("id", "conversation_id")


def id_of(value: dict[str, Any]) -> str:
    """Return a record's own id; empty where it has none.

    Raises:
        RejectedError: It is neither a text nor a number.
    """
    for key in ID_KEYS:
        name = value.get(key)
        if type(name) is str:
            if name:
                return clean(name)
        elif has_id(name):
            if isinstance(name, bool) or not isinstance(name, (str, int, float)):
                raise wrong_shape(f'"{key}" is a string or a number, not {kind_of(name)}')
            return str(name)
    return ""


def has_id(value: Any) -> bool:
    """Return whether something stands there: a table has NaN for what it lacks."""
    return value not in (None, "") and not (isinstance(value, float) and math.isnan(value))


def content_id(turns: Iterable[Turn]) -> str:
    """Return the id of a conversation that has none: 16 hexadecimal digits of its turns' SHA-256.

    >>> from pipeline.conversation import Role
    >>> content_id([Turn(Role.HUMAN, "hi"), Turn(Role.ASSISTANT, "Hello.")])
    '4250e02559b5e346'
    """
    pairs = [[turn.role.lower(), turn.text] for turn in turns]
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
