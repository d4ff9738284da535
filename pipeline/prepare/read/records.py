"""A parsed record to a Conversation, or the reason why it is none."""

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from pipeline.conversation import ROLES_BY_NAME, Conversation, Role, Turn
from pipeline.prepare.found import NumberText

_SURROGATES = re.compile("[\ud800-\udfff]")


class RejectedError(Exception):
    """A record that is no conversation: ``reason`` names the kind, ``detail`` the place."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep both."""
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def roles_with(extra: Mapping[str, str]) -> dict[str, Role]:
    """Return the speaker names with those that ``--role`` adds (name in lower case to role)."""
    return ROLES_BY_NAME | {name: Role(role.capitalize()) for name, role in extra.items()}


def parse_record(value: Any, default_id: str, roles: Mapping[str, Role]) -> Conversation:
    """Return the conversation in a record.

    Args:
        value: ``{"id", "conversations": [{"from", "value"}]}`` or
            ``{"id", "messages": [{"role", "content"}]}``, with an optional ``"system"``.
        default_id: The id of a record that has none.
        roles: Speaker names, in lower case.

    Raises:
        RejectedError: A wrong shape, an unknown role, or no turns.
    """
    if not isinstance(value, dict):
        raise RejectedError("wrong_shape", f"a record is an object, not {_kind(value)}")
    turns = [_system(value["system"])] if value.get("system") not in (None, "") else []
    if value.get("conversations") is not None:
        messages, who, what = value["conversations"], "from", "value"
    else:
        messages, who, what = value.get("messages"), "role", "content"
    if not isinstance(messages, list):
        if messages is None:
            raise RejectedError("wrong_shape", "neither conversations nor messages")
        raise RejectedError("wrong_shape", f"its turns are a list, not {_kind(messages)}")
    if not messages:
        raise RejectedError("no_turns", "a record without turns")
    turns += [_turn(message, i, who, what, roles) for i, message in enumerate(messages)]
    return Conversation(_id(value.get("id"), default_id), turns)


def clean(text: str) -> str:
    r"""Return a text with CRLF as LF and lone surrogates as U+FFFD; nothing else is touched.

    >>> clean("a\r\nb\rc")
    'a\nb\rc'
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")  # far faster than a search for surrogates
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text


def _turn(message: Any, i: int, who: str, what: str, roles: Mapping[str, Role]) -> Turn:
    if not isinstance(message, dict):
        raise RejectedError("wrong_shape", f"turn {i} is an object, not {_kind(message)}")
    name, content = message.get(who), message.get(what)
    if type(name) is not str:  # NumberText is a str too
        raise RejectedError("wrong_shape", f'"{who}" of turn {i} is a string, not {_kind(name)}')
    if type(content) is not str:
        if what != "content" or not isinstance(content, list):
            got = _kind(content)
            raise RejectedError("wrong_shape", f'"{what}" of turn {i} is a string, not {got}')
        content = _joined(content, i)
    role = roles.get(name) or roles.get(name.lower())
    if role is None:
        raise RejectedError("unknown_role", f'"{who}" of turn {i} is {name[:80]!r}; see --role')
    return Turn(role, clean(content))


def _joined(parts: list[Any], i: int) -> str:
    """Join the text parts of a message, with nothing between."""
    for part in parts:
        is_part = isinstance(part, dict) and part.get("type") == "text"
        if not is_part or not _is_text(part.get("text")):
            raise RejectedError("wrong_shape", f'a part of turn {i} is no {{"type": "text"}}')
    return "".join(part["text"] for part in parts)


def _system(text: Any) -> Turn:
    if not _is_text(text):
        raise RejectedError("wrong_shape", f'"system" is a string, not {_kind(text)}')
    return Turn(Role.SYSTEM, clean(text))


def _id(value: Any, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RejectedError("wrong_shape", f'"id" is a string or a number, not {_kind(value)}')
    return clean(str(value))


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, NumberText)


def _kind(value: Any) -> str:
    """Return the JSON name of a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float, NumberText)):
        return "a number"
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(
        type(value).__name__, type(value).__name__
    )
