"""A model's own chat template: fitted to any conversation, and rendered as transformers does.

What is saved with the rows, and with the model, is the model's template after a preamble
(``preamble.py``). What a template takes is found out by rendering a few words of each speaker.

A template is a stranger's program. It runs in transformers' sandbox, and has so many seconds.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.conversation import Role, Turn
from pipeline.errors import TokenizerError
from pipeline.tokenizer.preamble import ROLE_NAMES, Abilities, own_part, preamble

SECONDS = 10.0
"""Of one rendering, which takes a thousandth of one."""


_FORMS = {
    "system": "a system text goes before the first question",
    "later_system": "a later system text becomes a human's turn",
    "tool": "a tool's turn becomes a human's",
    "repeats": "turns in a row of one speaker become one",
    "opening": "what the assistant says before the first question is left out",
}
"""What becomes of what a template does not take; see ``Abilities``."""


class RefusedError(Exception):
    """A template does not take a conversation; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTemplate:
    """A template that takes any conversation.

    Args:
        text: The preamble, and the model's own template.
        special: What it may ask for: ``bos_token`` and the like.
        where: The tokenizer's folder or name, for messages.
    """

    text: str
    special: Mapping[str, str]
    where: str

    @property
    def own(self) -> str:
        """The model's own template."""
        return own_part(self.text)

    @property
    def abilities(self) -> Abilities:
        """What it takes."""
        return Abilities.of(self.text)

    @property
    def changes(self) -> str:
        """What becomes of what it does not take, for a line to the user; empty: it takes all."""
        return ", ".join(form for f, form in _FORMS.items() if not getattr(self.abilities, f))

    def render(self, turns: Sequence[Turn], tools: str = "") -> str:
        """Return the encoder's text for the answer that follows some turns.

        Args:
            turns: One at least; a system turn that comes first is the system text.
            tools: A line of JSON, which stands under the system text.

        Raises:
            RefusedError: The template does not take these turns.
            TokenizerError: It does not come to an end.
        """
        messages = [{"role": ROLE_NAMES[turn.role], "content": turn.text} for turn in turns]
        if tools:
            if not turns or turns[0].role is not Role.SYSTEM:
                messages.insert(0, {"role": "system", "content": ""})
            said = messages[0]["content"]
            messages[0]["content"] = (f"{said}\n" if said else "") + f"Tools: {tools}"
        return _rendered(self.text, messages, self.special, self.where, prompt=True)


def fit_template(
    own: str, special: Mapping[str, str], controls: Sequence[str], where: str
) -> ModelTemplate:
    """Put before a model's template what lets it take any conversation.

    Args:
        own: The model's template.
        special: What it may ask for: ``bos_token`` and the like.
        controls: The tokens that no message may bring.
        where: The tokenizer's folder or name, for messages.

    Raises:
        TokenizerError: It cannot be rendered, or loses a question or an answer.
    """
    takes = _Trial(own, special, where)
    takes.demand("user")
    takes.demand("user assistant user")
    abilities = Abilities(
        system=takes("system user"),
        later_system=takes("user assistant system user"),
        tool=takes("user assistant tool") and takes("user assistant tool assistant user"),
        repeats=takes("user user") and takes("user assistant assistant user"),
        opening=takes("assistant user"),
    )
    return ModelTemplate(text=preamble(abilities, controls) + own, special=special, where=where)


def read_template(text: str, special: Mapping[str, str], where: str) -> ModelTemplate:
    """Return a template that was fitted before.

    Raises:
        TokenizerError: What was put before it is broken.
    """
    try:
        Abilities.of(text)
    except ValueError as error:
        raise _unusable(error, where) from error
    return ModelTemplate(text=text, special=special, where=where)


def turn_end(template: ModelTemplate, controls: Sequence[str]) -> str | None:
    """Return the control token that a template ends the assistant's turns with, if there is one."""
    _, answer = words = ["qzone", "qztwo"]
    messages = [
        {"role": role, "content": word}
        for role, word in zip(("user", "assistant"), words, strict=True)
    ]
    try:
        text = _rendered(template.text, messages, template.special, template.where, prompt=False)
    except RefusedError:
        return None
    rest = text.rpartition(answer)[2]
    found = [(rest.find(token), -len(token), token) for token in controls if token in rest]
    return min(found)[2] if found else None


class _Trial:
    """Finds out what a template takes: it renders, and the words of all turns are there."""

    def __init__(self, own: str, special: Mapping[str, str], where: str) -> None:
        self._own, self._special, self._where = own, special, where

    def __call__(self, roles: str) -> bool:
        return not self._fault(roles)

    def demand(self, roles: str) -> None:
        """Refuse a template that does not take these turns."""
        if fault := self._fault(roles):
            raise _unusable(fault, self._where)

    def _fault(self, roles: str) -> str:
        words = [f"qz{i}word" for i in range(len(roles.split()))]
        messages = [
            {"role": role, "content": word} for role, word in zip(roles.split(), words, strict=True)
        ]
        try:
            text = _rendered(self._own, messages, self._special, self._where, prompt=True)
        except RefusedError as error:
            return str(error)
        lost = [role for role, word in zip(roles.split(), words, strict=True) if word not in text]
        return f"it leaves out what the {lost[0]} says" if lost else ""


def _rendered(
    template: str,
    messages: list[dict[str, str]],
    special: Mapping[str, str],
    where: str,
    *,
    prompt: bool,
) -> str:
    """Render as ``apply_chat_template`` does; ``prompt``: with what an answer follows."""
    try:
        # Imported late: it takes 0.7 seconds, and no torch.
        from transformers.utils.chat_template_utils import render_jinja_template

        with _limited():
            given: Any = special
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=template,
                add_generation_prompt=prompt,
                **given,
            )
        return str(rendered[0][0])
    except _TooLongError as error:
        raise _unusable(f"no end after {SECONDS:g} seconds", where) from error
    except Exception as error:  # whatever a stranger's program meets
        first = (str(error).strip().splitlines() or [""])[0]
        raise RefusedError(f"{type(error).__name__}: {first}".removesuffix(": ")) from error


def _unusable(got: object, where: str) -> TokenizerError:
    return TokenizerError(
        "the model's chat template cannot be used",
        where=where,
        got=got,
        do="correct it there, or give --chat-template duet",
    )


class _TooLongError(BaseException):
    """A rendering has had its time. No ``Exception``: a template must not catch it."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """End what takes too long, in a main thread; templates are tried in one first."""
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and hasattr(signal, "setitimer")):
        yield
        return

    def end(*_: object) -> None:
        raise _TooLongError

    handler = signal.signal(signal.SIGALRM, end)
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
