"""A parsed record to a Conversation, or the reason why it is none.

Pure: what comes out depends on the record alone. What was read in another form, by another key, or
by nobody is counted beside it; of a record that is rejected nothing is, as all of it is kept.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.conversation import ROLES_BY_NAME, Conversation, Role, Turn, has_visible
from pipeline.prepare.files.elements import TURN_KEYS, NumberText
from pipeline.prepare.read.forms import form_of, holds_records, nearest_form, turns_in, unread_form
from pipeline.prepare.read.html import HTML_STARTS, html_to_markdown, looks_like_html
from pipeline.prepare.read.ids import ID_KEYS, content_id, has_id, id_of
from pipeline.prepare.read.tool_calls import tool_call_lines
from pipeline.prepare.read.values import (
    RejectedError,
    clean,
    is_text,
    json_line,
    kind_of,
    not_text,
    parsed,
    text_of,
    wrong_shape,
)

SYSTEM_KEYS = ("system", "system_prompt", "system_message")
MEDIA_KEYS = ("images", "image", "audio", "videos")
NAME_KEYS = ("from", "role")
TEXT_KEYS = ("value", "content", "text")
THINKING_KEYS = ("reasoning_content", "thinking")
"""Keys of a turn that hold what is not trained; counted under these names."""

_PLAIN_RECORD = frozenset({"id", "conversations"})
_READ_IN_TURN = frozenset({"weight", "train", *THINKING_KEYS, *MEDIA_KEYS})


@dataclass(slots=True)
class RecordCounts:
    """What is counted of records that were accepted."""

    forms: Counter[str] = field(default_factory=Counter)
    """How many were read in another form than a list of turns, by the form's name."""
    unused_in_records: Counter[str] = field(default_factory=Counter)
    """Keys of records that are not used."""
    unused_in_turns: Counter[str] = field(default_factory=Counter)
    """Keys of turns that are not used."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Other things, by name: ``thinking``, ``looks_like_html``."""

    def update(self, other: "RecordCounts") -> None:
        """Add the counts of other records."""
        for name in self.__slots__:
            getattr(self, name).update(getattr(other, name))

    def __bool__(self) -> bool:
        """Return whether anything was counted."""
        return any(getattr(self, name) for name in self.__slots__)

    def unused_keys(self) -> dict[str, dict[str, int]]:
        """Return the keys that are not used, as the manifest has them."""
        kinds = {"records": self.unused_in_records, "turns": self.unused_in_turns}
        return {kind: dict(sorted(counts.items())) for kind, counts in kinds.items()}


def roles_with(extra: Mapping[str, str]) -> dict[str, Role]:
    """Return the speaker names with those that ``--role`` adds (name in lower case to role)."""
    return ROLES_BY_NAME | {name: Role(role.capitalize()) for name, role in extra.items()}


def parse_record(
    value: Any, roles: Mapping[str, Role], counts: RecordCounts, *, clean_html: bool = False
) -> Conversation:
    """Return the conversation in a record.

    Args:
        value: An object in one of the forms of ``forms.py``, or a list of turns.
        roles: Speaker names, in lower case.
        counts: Takes what is counted of the record, if it is accepted.
        clean_html: Make Markdown of texts that are HTML.

    Raises:
        RejectedError: A wrong shape, an unknown role, no turns, or more than text.
    """
    return _Parser(roles, counts, clean_html).parse(value)


class _Parser:
    """Parses one record."""

    __slots__ = ("_clean_html", "_counts", "_noted", "_roles", "_turns", "_untrained")

    def __init__(self, roles: Mapping[str, Role], counts: RecordCounts, clean_html: bool) -> None:
        self._roles, self._counts, self._clean_html = roles, counts, clean_html
        self._turns: list[Turn] = []
        self._untrained: list[int] = []
        self._noted: RecordCounts | None = None

    @property
    def _notes(self) -> RecordCounts:
        """What is counted if the record is accepted; most have nothing."""
        if self._noted is None:
            self._noted = RecordCounts()
        return self._noted

    def parse(self, value: Any) -> Conversation:
        if isinstance(value, list):
            name, messages, tools = "", _bare_turns(value), ""
        elif isinstance(value, dict):
            messages, tools = value.get("conversations") or [], ""
            if not (type(messages) is list and messages and value.keys() <= _PLAIN_RECORD):
                messages, tools = self._messages(value)
            name = id_of(value)
        else:
            raise wrong_shape(f"a record is an object, not {kind_of(value)}")
        beside = len(self._turns)
        roles, add = self._roles, self._turns.append
        for i, message in enumerate(messages):
            if type(message) is dict and len(message) == 2:  # the usual turn
                speaker, text = message.get("from"), message.get("value")
                role = roles.get(speaker) if type(speaker) is str else None
                if role is None or role is Role.SYSTEM or type(text) is not str:
                    pass
                elif not text.startswith(HTML_STARTS):
                    add(Turn(role, clean(text)))
                    continue
            self._add(message, i)
        if len(self._turns) == beside:
            raise RejectedError("no_turns", "a record without turns")
        if self._noted is not None:
            self._counts.update(self._noted)
        return Conversation(
            name or content_id(self._turns), self._turns, tools, frozenset(self._untrained)
        )

    def _messages(self, value: dict[str, Any]) -> tuple[list[Any], str]:
        """Return a record's turns and tools; take its system text; count unused keys."""
        read = set(MEDIA_KEYS)
        _, messages, looked_at = turns_in(value)
        if messages:
            read.update(looked_at)
        else:
            if (name := unread_form(value)) is not None:
                raise wrong_shape(f"{name}, no conversation")
            form = form_of(value)
            if form is None:
                raise _formless(value)
            messages = form.messages(value)
            read.update(form.keys, looked_at)
            self._notes.forms[form.name] += 1
        if not messages:
            raise RejectedError("no_turns", "a record without turns")
        self._refuse_media(value, "the record")
        read.update(ID_KEYS[:1] if has_id(value.get(ID_KEYS[0])) else ID_KEYS)
        self._take_system(value, read)
        read.add("tools")
        tools = _tools(value.get("tools"))
        unused = [k for k, v in value.items() if v is not None and k not in read]
        self._notes.unused_in_records.update(map(str, unused))
        return messages, tools

    def _take_system(self, value: dict[str, Any], read: set[str]) -> None:
        """Take the first system text beside the turns that has a visible character."""
        for key in SYSTEM_KEYS:
            if value.get(key) is None:
                continue
            read.add(key)
            text = self._cleaned(text_of(value[key], f'"{key}"'))
            if has_visible(text):
                self._turns.append(Turn(Role.SYSTEM, text))
                return

    def _add(self, message: Any, i: int) -> None:
        """Take a turn."""
        if not isinstance(message, dict):
            raise wrong_shape(f"turn {i} is an object, not {kind_of(message)}")
        self._refuse_media(message, f"turn {i}")
        name_key = _first_key(message, NAME_KEYS)
        name = message.get(name_key)
        if name is None:
            raise _lacks(message, i, "speaker", NAME_KEYS)
        if not is_text(name):
            raise wrong_shape(f'"{name_key}" of turn {i} is a string, not {kind_of(name)}')
        role = self._roles.get(name.strip().lower())
        if role is None:
            detail = f'"{name_key}" of turn {i} is {name[:80]!r}; see --role'
            raise RejectedError("unknown_role", detail)
        read = {name_key}
        lines = tool_call_lines(message, i, read) if role is Role.ASSISTANT else []
        text_key = _first_key(message, TEXT_KEYS)
        read.add(text_key)
        given, text = message.get(text_key), ""
        if given is None and not lines:
            raise _lacks(message, i, "text", TEXT_KEYS)
        if given is not None:
            text = self._cleaned(text_of(given, f'"{text_key}" of turn {i}'))
        if lines:
            text = "\n".join([text, *lines] if text else lines)
        self._note_keys(message, read)
        if role is Role.SYSTEM and not has_visible(text):
            return
        if role is Role.ASSISTANT and _is_untrained(message):
            self._untrained.append(len(self._turns))
        self._turns.append(Turn(role, text))

    def _note_keys(self, message: dict[str, Any], read: set[str]) -> None:
        for key in THINKING_KEYS:
            if message.get(key) not in (None, "", [], {}):
                self._notes.reasons[key] += 1
        for key, value in message.items():
            if value is not None and key not in read and not _is_known(key, value):
                self._notes.unused_in_turns[str(key)] += 1

    def _refuse_media(self, value: dict[str, Any], where: str) -> None:
        for key in MEDIA_KEYS:
            if value.get(key) not in (None, "", [], {}):
                raise not_text(where, f'"{key}"')

    def _cleaned(self, text: str) -> str:
        """Return a text as it is kept."""
        if looks_like_html(text):
            if self._clean_html:
                text = html_to_markdown(text)
            else:
                self._notes.reasons["looks_like_html"] += 1
        return clean(text)


def _bare_turns(value: list[Any]) -> list[Any]:
    first = value[0] if value else None
    if not isinstance(first, dict) or _first_value(first, NAME_KEYS) is None:
        raise wrong_shape("a record is an object or a list of turns")
    return value


def _lacks(message: dict[str, Any], i: int, what: str, looked_at: tuple[str, ...]) -> RejectedError:
    """Return the error of a turn without a speaker or a text."""
    return wrong_shape(
        f"turn {i} has no {what} under {' or '.join(looked_at)}; its keys: {_shown_keys(message)}"
    )


def _shown_keys(value: dict[str, Any]) -> str:
    return ", ".join(str(key)[:40] for key in list(value)[:12]) or "none"


def _formless(value: dict[str, Any]) -> RejectedError:
    if any(key in value for key in TURN_KEYS):
        return RejectedError("no_turns", "a record without turns")
    keys = _shown_keys(value)
    if holds_records(value):
        return wrong_shape(f"no turns, but records under its keys: {keys}; write them as a list")
    return wrong_shape(f"no turns; keys: {keys}; the nearest known form is {nearest_form(value)}")


def _tools(value: Any) -> str:
    """Return the tools of a record as a line of JSON; empty where there are none."""
    value = parsed(value, "tools") if value != "" else None
    if value is None or value in ([], {}):
        return ""
    if not isinstance(value, list):
        raise wrong_shape(f'"tools" is a list, not {kind_of(value)}')
    return json_line(value, '"tools"')


def _is_untrained(message: dict[str, Any]) -> bool:
    return message.get("train") is False or _number(message.get("weight")) == 0


def _is_known(key: str, value: Any) -> bool:
    """Return whether a turn's key is read, with the value that it has."""
    if key == "weight":
        return _number(value) in (0, 1)
    if key == "train":
        return isinstance(value, bool)
    return key in _READ_IN_TURN


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float, NumberText)) and not isinstance(value, bool)
    return float(value) if is_number else None


def _first_key(message: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Return the first of some keys whose value is not null; if none is, one to name."""
    for key in keys:
        if message.get(key) is not None:
            return key
    return next((key for key in keys if key in message), keys[0])


def _first_value(message: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return message.get(_first_key(message, keys))
