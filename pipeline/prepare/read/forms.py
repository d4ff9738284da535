"""The forms that a conversation is written in, and the lists of turns that they are read as.

    {"instruction": "Add.", "input": "2 + 2", "output": "4"}
    ->  [{"role": "user", "content": "Add.\n\n2 + 2"}, {"role": "assistant", "content": "4"}]

A record's turns stand under ``conversations``, ``conversation`` or ``messages``; where they do not,
the forms below are tried in their order. What looks like none is named where it is known.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.conversation import has_visible
from pipeline.prepare.files.elements import TURN_KEYS
from pipeline.prepare.read.values import is_text, kind_of, not_text, parsed, wrong_shape

Record = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a record.

    Args:
        name: As messages and the docs have it.
        required: Keys by which it is known: none of them null.
        optional: Keys that are read too.
        messages: Returns its turns.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    messages: Callable[[Record], list[Message]]

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that are read."""
        return self.required + self.optional

    def fits(self, record: Record) -> bool:
        """Return whether a record has this form."""
        return all(record.get(key) is not None for key in self.required)


def form_of(record: Record) -> Form | None:
    """Return the form of a record without a list of turns, if it is known."""
    return next((form for form in FORMS if form.fits(record)), None)


def unread_form(record: Record) -> str | None:
    """Return the name of a form that is known and not read."""
    for name, required in UNREAD_FORMS:
        if all(record.get(key) is not None for key in required):
            return name
    if isinstance(record.get("label"), bool) and record.get("completion") is not None:
        return "an answer that is only judged (completion, label)"
    return None


def holds_records(record: Record) -> bool:
    """Return whether the first value is a record, or a list of them: records by id, or splits."""
    value = next(iter(record.values()), None)
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return False
    return any(key in first for key in TURN_KEYS) or form_of(first) is not None


def nearest_form(keys: Iterable[str]) -> str:
    """Return the name of the form that has most of some keys; among equals, of fewest others."""
    names = set(keys)
    known = {"{conversations: [{from, value}, …]}": {*TURN_KEYS, "from", "value"}}
    known["{messages: [{role, content}, …]}"] = {"messages", "role", "content"}
    known |= {form.name: set(form.keys) for form in FORMS}
    best = max(known, key=lambda name: (len(known[name] & names), -len(known[name] - names)))
    return best if known[best] & names else next(iter(known))


def _asked(question: Any, answer: Any) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _question_and_answer(question: str, answer: str) -> Form:
    def messages(record: Record) -> list[Message]:
        return _asked(_text(record, question), _text(record, answer))

    return Form(f"{{{question}, {answer}}}", (question, answer), (), messages)


def _text(record: Record, key: str) -> Any:
    """Return what is a text, or a list of parts of one."""
    value = record[key]
    if not (is_text(value) or isinstance(value, list)):
        raise wrong_shape(f'"{key}" is a string, not {kind_of(value)}')
    return value


def _prompt_and_completion(record: Record) -> list[Message]:
    found: list[Message] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = _text(record, key)
        is_messages = isinstance(value, list) and all(
            isinstance(item, dict) and (item.get("role") or item.get("from")) is not None
            for item in value
        )
        found += value if is_messages else [{"role": role, "content": value}]
    return found


def _instruction(record: Record) -> list[Message]:
    instruction, more = _text(record, "instruction"), record.get("input")
    if more is not None and not is_text(more):
        raise wrong_shape(f'"input" is a string, not {kind_of(more)}')
    if more and has_visible(more):
        whole = instruction if isinstance(instruction, list) else [instruction]
        instruction = [*whole, "\n\n", more]
    return [*_history(record.get("history")), *_asked(instruction, _text(record, "output"))]


def _history(value: Any) -> list[Message]:
    """Return earlier questions and answers: a list of pairs of texts, oldest first."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_shape(f'"history" is a list, not {kind_of(value)}')
    found: list[Message] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_text, pair)):
            raise wrong_shape('"history" is a list of pairs of strings')
        found += _asked(*pair)
    return found


def _chatgpt_path(record: Record) -> list[Message]:
    """Return the messages on the path to the current node, oldest first."""
    mapping, name = record["mapping"], record["current_node"]
    if not isinstance(mapping, dict):
        raise wrong_shape(f'"mapping" is an object, not {kind_of(mapping)}')
    path: list[Message] = []
    passed: set[str] = set()
    while name is not None:
        node = mapping.get(name) if is_text(name) else None
        if not isinstance(node, dict) or name in passed:
            raise wrong_shape('"mapping" has no path to "current_node"')
        passed.add(name)
        if node.get("message") is not None:
            path += _chatgpt_message(node["message"])
        name = node.get("parent")
    return path[::-1]


def _chatgpt_message(message: Any) -> list[Message]:
    author = message.get("author") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(author, dict) or not isinstance(content, dict):
        raise wrong_shape('a message of "mapping" has no author or no content')
    found = {key: message[key] for key in ("weight", "images") if key in message}
    found["role"] = author.get("role")
    kind = content.get("content_type")
    if kind == "text":
        found["content"] = content.get("parts")
    elif kind in ("code", "execution_output"):
        found["content"] = content.get("text")
    elif kind == "multimodal_text":
        found["content"] = _multimodal(content.get("parts"))
    elif kind in ("thoughts", "reasoning_recap"):
        return [{"role": "system", "content": "", "thinking": content}]
    elif kind in ("user_editable_context", "model_editable_context"):
        return [{"role": "system", "content": "", str(kind): content}]
    else:
        raise wrong_shape(f"a message of content_type {str(kind)[:80]}")
    return [found]


def _multimodal(parts: Any) -> Any:
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict):
            kind = str(part.get("content_type"))[:80]
            raise not_text("a message", kind)
    return parts


FORMS = (
    Form("{prompt, completion}", ("prompt", "completion"), (), _prompt_and_completion),
    Form(
        "{instruction, input?, output, history?}",
        ("instruction", "output"),
        ("input", "history"),
        _instruction,
    ),
    _question_and_answer("question", "answer"),
    _question_and_answer("question", "response"),
    _question_and_answer("query", "response"),
    _question_and_answer("input", "output"),
    Form("ChatGPT's own export", ("mapping", "current_node"), (), _chatgpt_path),
)
"""Tried in this order where a record has no list of turns."""

UNREAD_FORMS = (
    ("a preference pair (chosen, rejected)", ("chosen", "rejected")),
    ("a tree of Open Assistant (message_tree_id, prompt)", ("message_tree_id", "prompt")),
    ("a message of an Open Assistant tree (message_id, text)", ("message_id", "text")),
)
"""Names of forms that hold no conversation, and the keys by which they are known."""


def turns_in(record: Record) -> tuple[str | None, list[Any], list[str]]:
    """Return the list of turns in a record.

    Returns:
        The key it stands under, or None; the turns; the keys that were looked at.

    Raises:
        RejectedError: Turns under such a key are no list.
    """
    looked_at = []
    for key in TURN_KEYS:
        value = record.get(key)
        if value is None:
            continue
        looked_at.append(key)
        value = parsed(value, "turns")
        if value is None or value == []:
            continue
        if isinstance(value, dict) and value and all(map(str.isdecimal, value)):
            raise wrong_shape(f'"{key}" is a column of a table; write it with orient="records"')
        if not isinstance(value, list):
            raise wrong_shape(f'"{key}" is a list, not {kind_of(value)}')
        return key, value, looked_at
    return None, [], looked_at
