"""What a JSON value is made of: a turn, a record, or records.

Python's own ``json`` is used rather than a faster parser: it reads a real export at 260 MB/s,
keeps lone surrogates (which others refuse) for us to replace, and lets a number that is not used be
of any size.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

TURN_KEYS = ("conversations", "conversation", "messages")
"""Where a record has its turns, the first that is neither null nor an empty list."""


class NumberText(str):
    """A JSON number as it was written."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


DECODER = json.JSONDecoder(
    parse_int=NumberText, parse_float=NumberText, parse_constant=_refuse_constant
)

_KEY = re.compile(r'\s*,?\s*"([^"\\]*)"\s*:\s*')
_ARRAY_OF_VALUES = re.compile(r"\[\s*[{\[]")


def is_turn(value: object) -> bool:
    """Return whether a value is one turn of a conversation, and no record.

    >>> is_turn({"from": "human", "value": "Hi"}), is_turn({"role": "x", "messages": []})
    (True, False)
    """
    return (
        isinstance(value, dict)
        and ("from" in value or "role" in value)
        and not any(key in value for key in TURN_KEYS)
    )


def elements_of(value: Any) -> Iterable[Any] | None:
    """Return the records that a value is made of; None where it is one by itself.

    >>> elements_of({"version": 1, "data": [{"id": 7}]})
    [{'id': 7}]
    """
    if isinstance(value, list):
        return None if value and is_turn(value[0]) else value
    if isinstance(value, dict) and all(value.get(key) in (None, []) for key in TURN_KEYS):
        data = value.get("data")
        if isinstance(data, list) and data and all(isinstance(e, (dict, list)) for e in data):
            return [data] if is_turn(data[0]) else data
    return None


def start_of_data(text: str, at: int) -> int | None:
    """Return where the first record in a broken object begins; None if it is not made of records.

    Args:
        text: Holds the object, at least as far as it is whole.
        at: Where it begins.

    >>> start_of_data('{"version": 1, "data": [{"id": 7}, {"id"', 0)
    24
    """
    found, at = None, at + 1
    while match := _KEY.match(text, at):
        key = match[1]
        if key == "data":
            found = _first_element(text, match.end())
        try:
            value, at = DECODER.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            return None if key in TURN_KEYS else found
        if key in TURN_KEYS and value not in (None, []):
            return None
    return found


def _first_element(text: str, at: int) -> int | None:
    """Return where the first of an array's records begins; None if it does not hold records."""
    match = _ARRAY_OF_VALUES.match(text, at)
    if match is None:
        return None
    first = match.end() - 1
    try:
        return None if is_turn(DECODER.raw_decode(text, first)[0]) else first
    except (ValueError, RecursionError):
        return first
