r"""How turns become tagged text: the one place that ``prepare``, ``chat`` and the tokenizer share.

    A chat between a curious human and an artificial intelligence assistant. […]⏎
    ⏎
    ### Human: What is 2 + 2?⏎
    ### Assistant: 4.⏎
    ### Human: And 3 + 3?⏎
    ### Assistant:

The header, then every turn after its tag, then the prompt. The prompt has no space after it: in
T5's vocabulary the space rides on the answer's first word. A system turn that comes first
replaces the header's sentence. What does not live here: cutting to the window (``window.py``)
and ids (``tokenizer.py``).

No text can pose as a turn: a line inside a text that begins with a tag gets one space before it.
A turn's own first line follows its tag and needs none; the header's first line does. The
test is made on the line as the tokenizer's normaliser leaves it, since ``＃＃＃ Human:`` has the
same ids as ``### Human:``.
"""

import re
from collections.abc import Callable, Sequence

from pipeline.conversation import ROLES_BY_NAME, Role, Turn

HEADER = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
"""The sentence of the Vicuna and FastChat-T5 prompt: a constant of the protocol."""

TAGS: dict[Role, str] = {role: f"### {role}:" for role in Role}
PROMPT = TAGS[Role.ASSISTANT]
_TAGGED = re.compile("^(" + "|".join(map(re.escape, TAGS.values())) + ") ?", re.MULTILINE)
_ROLES = {tag: role for role, tag in TAGS.items()}

Escape = Callable[..., str]
"""``escape(text, starts_line=False) -> text``; ``Escaper`` makes one."""

# The only characters that NFKC turns into "#": no line without one, or "#", can become a tag.
_OTHER_HASHES = re.compile("[\uff03\ufe5f]")
# Where these stay as they are, so does every plain line.
_PLAIN = ("".join(map(chr, range(0x20, 0x7F))), "  a  b  ", "###  a")
_NOT_PLAIN = re.compile(r"[^\n\t\x20-\x7e]")


class Escaper:
    r"""Puts one space before each line of a text that would read as a tag.

    Args:
        normalize: The tokenizer's normaliser, str to str; none leaves lines as they are.

    >>> Escaper()("see:\n### Human: me")
    'see:\n ### Human: me'
    >>> Escaper()("### Human: me"), Escaper()("### Human: me", starts_line=True)
    ('### Human: me', ' ### Human: me')
    """

    def __init__(self, normalize: Callable[[str], str] = str) -> None:
        """Normalise the tags once, as the lines will be."""
        self._normalize = normalize
        self._tags = tuple(normalize(tag) for tag in TAGS.values())
        self._leaves_plain = all(normalize(text) == text for text in _PLAIN)

    def __call__(self, text: str, starts_line: bool = False) -> str:
        """Return ``text`` escaped; ``starts_line``: its first line begins a line of its own."""
        if not _has_hash(text):
            return text
        is_literal = self._leaves_plain and not _NOT_PLAIN.search(text)
        if is_literal and not starts_line and "\n### " not in text:
            return text
        escape = self._escape_literally if is_literal else self._escape_line
        first, *rest = text.split("\n")
        lines = [escape(first) if starts_line else first]
        lines += map(escape, rest)
        return "\n".join(lines)

    def _escape_literally(self, line: str) -> str:
        return " " + line if line.startswith(self._tags) else line

    def _escape_line(self, line: str) -> str:
        # A tab is a token of its own and never part of a tag.
        head = line.split("\t", 1)[0]
        if _has_hash(head) and self._normalize(head).startswith(self._tags):
            return " " + line
        return line


def _has_hash(text: str) -> bool:
    # Both tests are far faster than a search for all of them.
    return "#" in text or (not text.isascii() and _OTHER_HASHES.search(text) is not None)


def split_system(turns: Sequence[Turn]) -> tuple[str, int]:
    """Return the header's sentence and the number of turns that it took (0 or 1)."""
    if turns and turns[0].role is Role.SYSTEM:
        return turns[0].text, 1
    return HEADER, 0


def header_text(sentence: str, escape: Escape, tools: str = "") -> str:
    r"""Return the header: its sentence, a line with the tools if there are any, and a blank line.

    >>> header_text("Be kind.", Escaper(), '[{"name": "f"}]')
    'Be kind.\nTools: [{"name": "f"}]\n\n'
    """
    line = f"\nTools: {tools}" if tools else ""
    return f"{escape(sentence, starts_line=True)}{line}\n\n"


def turn_text(turn: Turn, escape: Escape) -> str:
    r"""Return one turn of the history.

    >>> turn_text(Turn(Role.HUMAN, "hi"), Escaper())
    '### Human: hi\n'
    """
    return f"{TAGS[turn.role]} {escape(turn.text)}\n"


def encoder_text(turns: Sequence[Turn], escape: Escape, tools: str = "") -> str:
    """Return the whole source text for the answer that follows ``turns``, uncut."""
    sentence, taken = split_system(turns)
    history = "".join(turn_text(turn, escape) for turn in turns[taken:])
    return header_text(sentence, escape, tools) + history + PROMPT


def parse_encoder_text(text: str) -> tuple[str, list[Turn]] | None:
    r"""Return the header and the turns of an encoder's text; None if it is none of this template.

    A line that begins with a tag begins a turn: no text can do so. Of a text that was cut to the
    window, its first turns are gone, or the beginning of its last one.

    >>> header, turns = parse_encoder_text("Be kind.\n\n### Human: Hi\nyou\n### Assistant:")
    >>> header, [(str(turn.role), turn.text) for turn in turns]
    ('Be kind.', [('Human', 'Hi\nyou')])
    """
    if not text.endswith(PROMPT):
        return None
    header, *parts = _TAGGED.split(text.removesuffix(PROMPT))
    turns = [
        Turn(_ROLES[tag], said.removesuffix("\n"))
        for tag, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return header.strip(), turns


def is_chat_template(text: str) -> bool:
    """Return whether a text is ``chat_template``, this program's or an earlier one's."""
    return text.startswith(chat_template()[:_BEGINNING]) and repr(HEADER) in text


def chat_template() -> str:
    """Return the Jinja template that renders ``messages`` to exactly ``encoder_text``.

    Jinja has no normaliser at hand: it escapes tags in their literal form only, takes white space
    alone for blank, and leaves arguments that are an object in a string as they are.
    """
    escaped = " | replace('\\r\\n', '\\n')" + "".join(
        f" | replace('\\n{tag}', '\\n {tag}')" for tag in TAGS.values()
    )
    names = {role: [name for name, r in ROLES_BY_NAME.items() if r is role] for role in TAGS}
    tags = "".join(
        f"{{%- {'if' if i == 0 else 'elif'} role in {names[role]} -%}}{TAGS[role]}"
        for i, role in enumerate(TAGS)
    )
    return (
        f"{{%- set systems = {names[Role.SYSTEM]} -%}}"
        f"{TEXT_MACRO}{CALLS_MACRO}"
        "{%- set ns = namespace(messages=[]) -%}"
        "{%- for message in messages -%}"
        "{%- set is_system = message['role'] | trim | lower in systems -%}"
        "{%- if not is_system or text(message['content']) | trim -%}"
        "{%- set ns.messages = ns.messages + [message] -%}{%- endif -%}{%- endfor -%}"
        "{%- set first = ns.messages[0] if ns.messages else {'role': ''} -%}"
        "{%- set first_is_system = first['role'] | trim | lower in systems -%}"
        "{%- if first_is_system -%}"
        f"{{{{ (('\\n' ~ text(first['content'])){escaped})[1:] }}}}"
        f"{{%- else -%}}{{{{ {HEADER!r} }}}}{{%- endif -%}}"
        "{%- if tools -%}{{ '\\nTools: ' ~ (tools | tojson) }}{%- endif -%}"
        "{{ '\\n\\n' }}"
        "{%- for message in (ns.messages[1:] if first_is_system else ns.messages) -%}"
        "{%- set role = message['role'] | trim | lower -%}"
        f"{tags}"
        "{%- else -%}{{ raise_exception('unknown role: ' ~ message['role']) }}{%- endif -%}"
        f"{{{{ ' ' ~ ((text(message['content']) ~ calls(message)){escaped}) ~ '\\n' }}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{PROMPT}{{%- endif -%}}"
    )


_BEGINNING = 80
TEXT_MACRO = (
    "{%- macro text(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- elif content -%}{%- for part in content -%}"
    "{{ part if part is string else part['text'] }}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
CALLS_MACRO = (
    "{%- macro calls(message) -%}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set f = call['function'] or call -%}"
    "{%- if message['content'] or not loop.first -%}{{ '\\n' }}{%- endif -%}"
    "{{ '{\"name\": ' ~ (f['name'] | tojson) ~ ', \"arguments\": ' }}"
    "{%- if f['arguments'] is string and f['arguments'][:1] == '{' -%}{{ f['arguments'] }}"
    "{%- else -%}{{ f['arguments'] | tojson }}{%- endif -%}{{ '}' }}"
    "{%- endfor -%}{%- endmacro -%}"
)
