"""The contract read as plainly as can be: parsed JSON values in, rows and counts out.

What the program does fast and in pieces is done here slowly and whole, with nothing of ours but the
saved tokenizer, loaded by ``AutoTokenizer``. Tests compare the two, row by row.
"""

import contextlib
import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

HEADER = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions."
)
ROLES = {
    "human": ("human", "user", "prompter"),
    "assistant": (
        *("gpt", "chatgpt", "bing", "bard", "assistant", "model", "ai", "bot"),
        *("function_call", "tool_call"),
    ),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "tool_response"),
}
TAG = {role: f"### {role.capitalize()}:" for role in ROLES}
ROLE = {name: role for role, names in ROLES.items() for name in names}
NEWLINES = 2
MISSING = (None, "", [], {})


class RejectedError(Exception):
    pass


def require(condition: Any) -> None:
    if not condition:
        raise RejectedError


@dataclass
class Chat:
    id: str
    turns: list[tuple[str, str]]
    tools: str = ""
    untrained: set[int] = field(default_factory=set)


# --- records --------------------------------------------------------------------------------------


def visible(text: str) -> bool:
    hidden = {"Cc", "Cf", "Zs", "Zl", "Zp"}
    return any(not c.isspace() and unicodedata.category(c) not in hidden for c in text)


def clean(text: str) -> str:
    text = text.replace("\r\n", "\n")
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    require(isinstance(value, list))
    texts = []
    for part in value:
        if isinstance(part, dict):
            require(part.get("type") == "text")
            part = part.get("text")
        require(isinstance(part, str))
        texts.append(part)
    return "".join(texts)


def json_or(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return strict_json(value)
    except (ValueError, RecursionError):
        raise RejectedError from None


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def first(value: dict[str, Any], *keys: str) -> Any:
    return next((value[key] for key in keys if value.get(key) is not None), None)


def call_line(call: Any) -> str:
    require(isinstance(call, dict))
    function = call if call.get("function") is None else call["function"]
    require(isinstance(function, dict) and isinstance(function.get("name"), str))
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = strict_json(arguments)
    return clean(json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False))


def messages_of(record: dict[str, Any]) -> list[Any]:
    """Return the turns in a record, in whatever form it has."""
    for key in ("conversations", "conversation", "messages"):
        turns = json_or(record.get(key))
        if turns is not None and turns != []:
            require(isinstance(turns, list))
            return list(turns)

    def has(*keys: str) -> bool:
        return all(record.get(key) is not None for key in keys)

    def content(key: str) -> Any:
        require(isinstance(record[key], (str, list)))
        return record[key]

    require(not has("chosen", "rejected"))
    require(not has("message_tree_id", "prompt") and not has("message_id", "text"))
    require(not (has("completion") and isinstance(record.get("label"), bool)))
    if has("prompt", "completion"):
        found: list[Any] = []
        for key, role in (("prompt", "user"), ("completion", "assistant")):
            value = content(key)
            if isinstance(value, list) and all(
                isinstance(m, dict) and (m.get("role") or m.get("from")) is not None for m in value
            ):
                found += value
            else:
                found.append({"role": role, "content": value})
        return found
    if has("instruction", "output"):
        found, more = [], record.get("input")
        require(record.get("history") is None or isinstance(record["history"], list))
        for pair in record.get("history") or []:
            require(isinstance(pair, list) and len(pair) == 2)
            require(isinstance(pair[0], str) and isinstance(pair[1], str))
            found += [{"role": "user", "content": pair[0]}, {"role": "ai", "content": pair[1]}]
        require(more is None or isinstance(more, str))
        asked = text_of(content("instruction"))
        if more and visible(more):
            asked += "\n\n" + more
        content("output")
        return [
            *found,
            {"role": "user", "content": asked},
            {"role": "ai", "content": record["output"]},
        ]
    for question, answer in (
        *(("question", "answer"), ("question", "response")),
        *(("query", "response"), ("input", "output")),
    ):
        if has(question, answer):
            return [
                {"role": "user", "content": content(question)},
                {"role": "assistant", "content": content(answer)},
            ]
    require(has("mapping", "current_node") and isinstance(record["mapping"], dict))
    path: list[Any] = []
    node, passed = record["current_node"], set()
    while node is not None:
        require(isinstance(node, str) and node not in passed)
        passed.add(node)
        node = record["mapping"].get(node)
        require(isinstance(node, dict))
        message = node.get("message")
        if message is not None:
            require(isinstance(message, dict) and isinstance(message.get("content"), dict))
            require(isinstance(message.get("author"), dict))
            kind = message["content"].get("content_type")
            thinking = ("thoughts", "reasoning_recap")
            context = ("user_editable_context", "model_editable_context")
            if kind not in (*thinking, *context):
                require(kind in ("text", "code", "execution_output", "multimodal_text"))
                part = "parts" if kind in ("text", "multimodal_text") else "text"
                value = message["content"].get(part)
                if kind == "multimodal_text" and isinstance(value, list):
                    require(not any(isinstance(item, dict) for item in value))
                path.append(
                    {
                        "role": message["author"].get("role"),
                        "content": value,
                        "weight": message.get("weight"),
                        "images": message.get("images"),
                    }
                )
        node = node.get("parent")
    return path[::-1]


def chat_of(value: Any, html: Any = None) -> Chat:
    """Return the conversation in a record; ``html``: makes Markdown of a text that is HTML."""
    convert = html or (lambda text: text)
    if isinstance(value, list):
        require(value and isinstance(value[0], dict))
        require(first(value[0], "from", "role") is not None)
        value = {"messages": value}
    require(isinstance(value, dict))
    messages = messages_of(value)
    require(messages)
    chat = Chat("", [])
    for key in ("images", "image", "audio", "videos"):
        require(value.get(key) in MISSING)
    for key in ("system", "system_prompt", "system_message"):
        if value.get(key) is not None:
            text = clean(convert(text_of(value[key])))
            if visible(text):
                chat.turns.append(("system", text))
                break
    beside = len(chat.turns)
    tools = json_or(value.get("tools")) if value.get("tools") != "" else None
    require(tools is None or tools == {} or isinstance(tools, list))
    if tools:
        try:
            chat.tools = clean(json.dumps(tools, ensure_ascii=False))
        except RecursionError:
            raise RejectedError from None
    for message in messages:
        require(isinstance(message, dict))
        for key in ("images", "image", "audio", "videos"):
            require(message.get(key) in MISSING)
        name = first(message, "from", "role")
        require(isinstance(name, str) and name.strip().lower() in ROLE)
        role = ROLE[name.strip().lower()]
        lines = []
        if role == "assistant":
            calls = json_or(message.get("tool_calls"))
            require(calls is None or isinstance(calls, list))
            calls = calls or []
            if message.get("function_call") is not None:
                calls = [*calls, message["function_call"]]
            lines = [call_line(call) for call in calls]
        text = first(message, "value", "content", "text")
        if text is None and lines:
            text = ""
        text = clean(convert(text_of(text)))
        if lines:
            text = "\n".join([text, *lines] if text else lines)
        if role == "system" and not visible(text):
            continue
        weight = message.get("weight")
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if role == "assistant" and (message.get("train") is False or (is_number and weight == 0)):
            chat.untrained.add(len(chat.turns))
        chat.turns.append((role, text))
    require(len(chat.turns) > beside)
    for key in ("id", "conversation_id"):
        name = value.get(key)
        if name is not None and name != "" and not (isinstance(name, float) and math.isnan(name)):
            require(isinstance(name, (str, int, float)) and not isinstance(name, bool))
            chat.id = clean(str(name))
            break
    if not chat.id:
        pairs = json.dumps(chat.turns, ensure_ascii=False, separators=(",", ":"))
        chat.id = hashlib.sha256(pairs.encode()).hexdigest()[:16]
    return chat


# --- conversations --------------------------------------------------------------------------------


def part_id(name: str) -> tuple[str, int] | None:
    base, _, index = name.rpartition("_")
    if base and re.fullmatch("[0-9]{1,9}", index):
        return base, int(index)
    return None


def site_form(base: str) -> bool:
    return bool(re.fullmatch("[A-Za-z0-9_-]{7}", base)) and bool(re.search("[A-Z0-9]", base))


def joins(whole: Chat, part: Chat) -> bool:
    a, b = part_id(whole.id), part_id(part.id)
    if a is None or b is None or a[0] != b[0]:
        return False
    (base, s), (_, n), e = a, b, a[1] + len(whole.turns)
    if not s < n <= e:
        return False
    both = min(e - n, len(part.turns))
    agree = whole.turns[n - s : n - s + both] == part.turns[:both]
    return agree and (n < e or site_form(base))


def conversations_of(chats: list[Chat], join: bool = True, dedup: bool = True) -> list[Chat]:
    """Join parts and leave out repeats."""
    whole: list[Chat] = []
    for chat in chats:
        if join and whole and joins(whole[-1], chat):
            last = whole[-1]
            skip = part_id(chat.id)[1] - part_id(last.id)[1]  # type: ignore[index]
            held = len(last.turns) - skip
            last.untrained |= {skip + i for i in chat.untrained if i >= held}
            last.turns += chat.turns[max(held, 0) :]
        else:
            whole.append(Chat(chat.id, list(chat.turns), chat.tools, set(chat.untrained)))
    kept, seen = [], set()
    for chat in whole:
        key = (tuple(chat.turns), chat.tools)
        if not (dedup and key in seen):
            kept.append(chat)
        seen.add(key)
    return kept


# --- rows -----------------------------------------------------------------------------------------


class PlainEncoder:
    """Makes rows with a tokenizer that ``AutoTokenizer`` loaded."""

    def __init__(self, auto: Any, length: int, target: int | None = None, last: bool = False):
        self.auto, self.length, self.target, self.last = auto, length, target or length, last
        self.reasons: Counter[str] = Counter()
        self.answers_with_unknown = 0
        self._ids: dict[str, list[int]] = {}
        normalizer = auto.backend_tokenizer.normalizer
        self._normal = normalizer.normalize_str if normalizer is not None else str
        self._tags = tuple(self._normal(tag) for tag in TAG.values())

    def ids(self, text: str) -> list[int]:
        if text not in self._ids:
            encoded = self.auto(text, add_special_tokens=False, split_special_tokens=True)
            self._ids[text] = list(encoded.input_ids)
        return self._ids[text]

    def escape(self, text: str, starts_line: bool = False) -> str:
        lines = text.split("\n")
        for i, line in enumerate(lines):
            # A tab is a token of its own: what is behind it is normalised apart.
            if (i > 0 or starts_line) and self._normal(line.split("\t")[0]).startswith(self._tags):
                lines[i] = " " + line
        return "\n".join(lines)

    def rows(self, chat: Chat) -> list[dict[str, Any]]:
        answers, turns = [], chat.turns
        for i, (role, text) in enumerate(turns):
            if role == "human" and not any(r == "assistant" for r, _ in turns[i:]):
                self.reasons["question_without_answer"] += 1
            if role == "assistant":
                reason = self.reason_against(chat, i, text)
                if reason:
                    self.reasons[reason] += 1
                else:
                    answers.append(i)
        if not answers:
            self.reasons["no_pair"] += 1
        found = []
        for i in answers[-1:] if self.last else answers:
            labels = [*self.ids(turns[i][1]), 1]
            self.answers_with_unknown += 2 in labels
            self.reasons["answer_cut"] += len(labels) > self.target
            found.append(
                {
                    "input_ids": self.source(chat, i),
                    "labels": labels[: self.target],
                    "conversation_id": chat.id,
                    "turn": i,
                }
            )
        self._ids.clear()
        return found

    def reason_against(self, chat: Chat, i: int, text: str) -> str:
        if not any(role == "human" for role, _ in chat.turns[:i]):
            return "answer_without_question"
        if i in chat.untrained:
            return "not_trained"
        if not visible(text) or not self.ids(text):
            return "empty_answer"
        known = [x for x in self.ids(text) if x != 2]
        letters = "".join(self.auto.convert_ids_to_tokens(known))
        if 2 in self.ids(text) and not any(c.isalpha() or c.isdigit() for c in letters):
            return "unknown_answer"
        return ""

    def source(self, chat: Chat, answer: int) -> list[int]:
        turns, sentence = chat.turns[:answer], HEADER
        if turns[0][0] == "system":
            sentence, turns = turns[0][1], turns[1:]
        header = self.escape(sentence, starts_line=True)
        header += f"\nTools: {chat.tools}\n\n" if chat.tools else "\n\n"
        texts = [f"{TAG[role]} {self.escape(text)}\n" for role, text in turns]
        prompt = self.ids(TAG["assistant"])
        room = self.length - 1 - len(prompt)
        head, encoded = self.ids(header), [self.ids(text) for text in texts]
        if len(head) + sum(map(len, encoded)) <= room:
            return [*self.ids(header + "".join(texts) + TAG["assistant"]), 1]
        most = max(room - len(encoded[-1]), room // 2)
        if len(head) > most:
            self.reasons["header_cut"] += 1
            head = head[: most - NEWLINES] + self.ids("\n\n")
        cut = False
        while len(encoded) > 1 and len(head) + sum(map(len, encoded)) > room:
            encoded.pop(0)
            cut = True
        if len(head) + len(encoded[0]) > room:
            self.reasons["question_cut"] += 1
            tag = self.ids(TAG[turns[-1][0]])
            left = room - len(head) - len(tag)
            encoded, cut = [tag + encoded[0][len(encoded[0]) - left :]], False
        self.reasons["history_cut"] += cut
        return [*head, *itertools.chain(*encoded), *prompt, 1]


@dataclass
class Reading:
    rows: list[dict[str, Any]]
    counts: dict[str, int]
    reasons: dict[str, int]


def read(
    values: list[Any], encoder: PlainEncoder, join: bool = True, dedup: bool = True
) -> Reading:
    """Return the rows of some records, and what the manifest should count."""
    chats, rejected = [], 0
    for value in values:
        try:
            chats.append(chat_of(value))
        except RejectedError:
            rejected += 1
    whole = conversations_of(chats, join, dedup=False)
    kept = conversations_of(chats, join, dedup)
    rows = [row for chat in kept for row in encoder.rows(chat)]
    counts = {
        "records": len(values),
        "rejected": rejected,
        "joined": len(chats) - len(whole),
        "conversations": len(kept),
        "pairs": len(rows),
    }
    reasons = encoder.reasons + Counter({"duplicate": len(whole) - len(kept)})
    return Reading(rows, counts, {name: n for name, n in reasons.items() if n})
