r"""What stands before a model's chat template, so that it takes any conversation.

    {#- duet-t5 {"system": false, …} -#}  …  {%- set messages = … %}⏎  <the model's template>

It rebuilds ``messages``, so that whoever renders a conversation in stock transformers gets the
text of the rows: roles by all their names, texts of parts, calls and tools as lines of the text;
turns in a row of one speaker as one, where the template wants speakers to alternate; a system text
that it refuses before the first question; and no control token out of a message.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.conversation import ROLES_BY_NAME, Role
from pipeline.template import CALLS_MACRO, TEXT_MACRO

ROLE_NAMES: dict[Role, str] = {
    Role.HUMAN: "user",
    Role.ASSISTANT: "assistant",
    Role.SYSTEM: "system",
    Role.TOOL: "tool",
}
"""What templates call the speakers."""
_MARK = "{#- duet-t5 "
_MARK_END = " -#}"
# After this tag's newline, which transformers' settings drop, all is as at a template's beginning.
_LAST = "{%- set messages = duet.messages %}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Abilities:
    """What a template takes as it is. What it does not, the preamble gives it in another form."""

    system: bool
    """A system text that comes first; else it stands before the first question."""
    later_system: bool
    """One that comes later; else it is a human's."""
    tool: bool
    """A tool's turn; else it is a human's."""
    repeats: bool
    """Two turns in a row of one speaker; else they are one, with a blank line between."""
    opening: bool
    """An assistant that speaks first; else what it says before the first question is left out."""

    @classmethod
    def of(cls, text: str) -> "Abilities":
        """Return what a fitted template's preamble says of it.

        Raises:
            ValueError: It is broken.
        """
        said, _, rest = text.removeprefix(_MARK).partition(_MARK_END)
        try:
            if _LAST not in rest:
                raise ValueError("it is cut off")
            return cls(**json.loads(said))
        except (ValueError, TypeError) as error:
            raise ValueError(f"a broken beginning: {text[:40]!r}") from error


def own_part(text: str) -> str:
    """Return a template without our preamble."""
    return text.partition(_LAST)[2] if is_fitted(text) else text


def is_fitted(text: str) -> bool:
    """Return whether a template has our preamble; ``Abilities.of`` says whether it is whole."""
    return text.startswith(_MARK)


def preamble(abilities: Abilities, controls: Sequence[str]) -> str:
    """Return Jinja that rebuilds ``messages`` as a template of these abilities takes them."""
    said = json.dumps(dataclasses.asdict(abilities))
    roles = {name: ROLE_NAMES[role] for name, role in ROLES_BY_NAME.items()}
    takes = {"tool": abilities.tool, "system": abilities.later_system}
    given_as_human = [name for name, taken in takes.items() if not taken]
    return (
        f"{_MARK}{said}{_MARK_END}"
        f"{{%- set duet_roles = {roles} -%}}{{%- set duet_as_user = {given_as_human} -%}}"
        f"{TEXT_MACRO.replace('macro text', 'macro duet_text')}"
        f"{CALLS_MACRO.replace('macro calls', 'macro duet_calls')}"
        f"{_plain_macro([token for token in controls if len(token) > 1])}"
        "{%- set duet = namespace(messages=[], system='', opening='') -%}"
        "{%- for message in messages -%}"
        "{%- set role = duet_roles.get(message['role'] | trim | lower) -%}"
        "{%- if not role -%}{{ raise_exception('unknown role: ' ~ message['role']) }}{%- endif -%}"
        "{%- set content = duet_plain(duet_text(message['content']) ~ duet_calls(message)) -%}"
        "{%- if role == 'system' and not content | trim -%}"
        "{%- elif role == 'system' and not (duet.messages or duet.system or duet.opening) -%}"
        "{%- set duet.system = content -%}"
        "{%- else -%}"
        "{%- set role = 'user' if role in duet_as_user else role -%}"
        f"{_add_turn(abilities)}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if tools -%}"
        "{%- set line = 'Tools: ' ~ duet_plain(tools | tojson) -%}{%- set tools = none -%}"
        "{%- set duet.system = (duet.system ~ '\\n' if duet.system else '') ~ line -%}"
        "{%- endif -%}"
        f"{{%- if duet.system -%}}{_add_system(abilities)}{{%- endif -%}}"
        f"{_LAST}"
    )


def _plain_macro(controls: Sequence[str]) -> str:
    """Return a macro that puts a space after the first character of each control token.

    Once is not enough: ``####`` holds ``###`` once more where ``# ##`` ends. Each time the next
    one begins a character later in what it was, so that a token's length is enough. White space
    and single characters are text, whoever calls them control tokens.

    An attribute costs the sandbox more than a search: those of the namespace are asked for where
    there is something to do alone.
    """
    # Those with a space last: one may come of what was put into another.
    tokens = sorted((t for t in controls if len(t.strip()) > 1), key=lambda token: " " in token)
    firsts = sorted({token.lstrip()[0] for token in tokens})
    may_hold = " or ".join(f"{first!r} in text" for first in firsts) or "false"
    return (
        "{%- macro duet_plain(text) -%}"
        "{%- set text = text | replace('\\r\\n', '\\n') -%}"
        f"{{%- if {may_hold} -%}}"
        "{%- set plain = namespace(text=text) -%}"
        f"{{%- for token, broken in {[(t, _broken(t)) for t in tokens]} -%}}"
        "{%- if token in text or ' ' in token -%}"
        "{%- for _ in range(token | length) -%}{%- if token in plain.text -%}"
        "{%- set plain.text = plain.text | replace(token, broken) -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- endif -%}{%- endfor -%}{{- plain.text -}}"
        "{%- else -%}{{- text -}}{%- endif -%}"
        "{%- endmacro -%}"
    )


def _broken(token: str) -> str:
    at = token.index(token.strip()) + 1
    return f"{token[:at]} {token[at:]}"


def _add_turn(abilities: Abilities) -> str:
    add = "{%- set duet.messages = duet.messages + [{'role': role, 'content': content}] -%}"
    if not abilities.repeats:
        add = (
            "{%- if duet.messages and duet.messages[-1]['role'] == role -%}"
            "{%- set content = duet.messages[-1]['content'] ~ '\\n\\n' ~ content -%}"
            "{%- set duet.messages = duet.messages[:-1] -%}{%- endif -%}" + add
        )
    if not abilities.opening:
        add = (
            "{%- if role == 'assistant' and not duet.messages -%}"
            "{%- set duet.opening = 'left out' -%}{%- else -%}" + add + "{%- endif -%}"
        )
    return add


def _add_system(abilities: Abilities) -> str:
    if abilities.system:
        return (
            "{%- set first = {'role': 'system', 'content': duet.system} -%}"
            "{%- set duet.messages = [first] + duet.messages -%}"
        )
    return (
        "{%- set asked = namespace(messages=[], is_first=true) -%}"
        "{%- for message in duet.messages -%}"
        "{%- if asked.is_first and message['role'] == 'user' -%}"
        "{%- set asked.is_first = false -%}"
        "{%- set content = duet.system ~ '\\n\\n' ~ message['content'] -%}"
        "{%- set message = {'role': 'user', 'content': content} -%}"
        "{%- endif -%}"
        "{%- set asked.messages = asked.messages + [message] -%}"
        "{%- endfor -%}"
        "{%- if asked.is_first -%}"
        "{%- set first = {'role': 'user', 'content': duet.system} -%}"
        "{%- set asked.messages = [first] + asked.messages -%}"
        "{%- endif -%}"
        "{%- set duet.messages = asked.messages -%}"
    )
