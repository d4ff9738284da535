"""Turns a settings class into a command's flags, and old ways of writing flags into today's.

The Hugging Face trainers write ``--bf16 True`` and ``--data_path``; a command line that worked
there works here: an underscore is read as a dash, and a switch also takes a value.
"""

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from pipeline.config import FitOptions
from pipeline.config.fields import flag
from pipeline.trainer_flags import ALIASES, IGNORED, REFUSED

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_WORDS = _TRUE + _FALSE

_OFF = (*_FALSE, "none", "null", "")
"""Values that switch a flag off."""
_NEAR = 0.78
"""How alike two flags' letters must be for one to be a misspelling of the other."""


class UsageError(Exception):
    """A command line that cannot be understood; exit code 2."""


class Arguments(NamedTuple):
    """A command line in today's form, and what to say of the rest."""

    args: list[str]
    notes: list[str]


def command_of(config_class: type[Any], run: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return the function that Typer makes a command of: one flag a field, help from the field."""

    def command(**values: Any) -> Any:
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return run(config_class(**given))

    hints = typing.get_type_hints(config_class)
    # What must be given comes first in the help.
    fields = sorted(
        dataclasses.fields(config_class), key=lambda f: f.default is not dataclasses.MISSING
    )
    parameters = [_parameter(f, hints[f.name]) for f in fields]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(f: "dataclasses.Field[Any]", hint: Any) -> inspect.Parameter:
    name, required = flag(f.name), f.default is dataclasses.MISSING
    default = inspect.Parameter.empty if required else f.default
    if typing.get_origin(hint) is tuple:
        hint = list[str]
        default = default if required else list(typing.cast("tuple[str, ...]", f.default))
    if f.metadata["positional"]:
        info: Any = typer.Argument(help=f.metadata["help"], metavar=f.name.upper())
    elif _is_switch(hint):
        info = typer.Option(f"{name}/--no-{name[2:]}", help=f.metadata["help"])
    else:
        info = typer.Option(name, help=f.metadata["help"])
    return inspect.Parameter(
        f.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[hint, info], default=default
    )


def _is_switch(hint: Any) -> bool:
    return hint is bool or bool in typing.get_args(hint)


def flags_of(config_class: type[Any]) -> dict[str, bool]:
    """Return a command's flags, and whether each is a switch."""
    hints = typing.get_type_hints(config_class)
    flags = {}
    for f in dataclasses.fields(config_class):
        if not f.metadata["positional"]:
            flags[flag(f.name)] = switch = _is_switch(hints[f.name])
            if switch:
                flags["--no-" + flag(f.name)[2:]] = True
    return flags


def modernise(args: Sequence[str], config_class: type[Any]) -> Arguments:
    """Rewrite a command's arguments to today's form.

    Args:
        args: What stands after the command's name.
        config_class: The command's settings. Where they are of a training run, flags of the
            Hugging Face trainer are known: see ``trainer_flags``.

    Raises:
        UsageError: An unknown flag; the message names a near one, or what to use instead.

    >>> from pipeline.config import FitConfig
    >>> modernise(["--bf16", "True", "--data_path=x"], FitConfig).args
    ['--bf16', '--data-path', 'x']
    """
    flags = flags_of(config_class)
    trains = issubclass(config_class, FitOptions)
    result, notes, rest = [], list[str](), list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--") or arg == "--":
            result.append(arg)
            continue
        name, equals, value = arg.partition("=")
        name = name.lower().replace("_", "-")
        if name not in flags:
            name = ALIASES.get(name, name)
        if name == "--help":
            return Arguments(["--help"], [])
        if equals:
            rest.insert(0, value)
        if flags.get(name):
            result.append(_switch(name, rest, given=bool(equals)))
        elif name in flags:
            if not rest or (rest[0].startswith("--") and not equals):
                raise UsageError(f"{name} needs a value, got {rest[0] if rest else 'nothing'}")
            result += [name, rest.pop(0)]
        else:
            valued = bool(rest) and (bool(equals) or not rest[0].startswith("--"))
            given = rest.pop(0) if valued else None
            if not trains or (reason := _ignored(name, given)) is None:
                raise UsageError(_unknown(name, given, flags))
            notes.append(f"{name} is ignored: {reason}")
    return Arguments(result, notes)


def _ignored(name: str, value: str | None) -> str | None:
    """Return why a flag of the Hugging Face trainer changes nothing; None where it would.

    Raises:
        UsageError: It would, and the message says what to use instead.
    """
    if name.removeprefix("--no-") != name:
        positive = "--" + name.removeprefix("--no-")
        name, value = (positive, "False") if positive in IGNORED | REFUSED else (name, value)
    if name in IGNORED:
        return IGNORED[name]
    if name not in REFUSED:
        return None
    refusal = REFUSED[name]
    if value is not None and value.lower() in (*_OFF, *refusal.unless):
        return refusal.text
    raise UsageError(f"{name} is not available: {refusal.text}")


def _unknown(name: str, value: str | None, flags: dict[str, bool]) -> str:
    """Return what to say of a flag that nobody knows: a near one, if there is one."""
    valued = value is not None and value.lower() not in _WORDS
    likely = [known for known, switch in flags.items() if not (valued and switch)]
    nearest = max(likely, key=lambda known: _likeness(name, known))
    near = _letters_alike(name, nearest) >= _NEAR or _abbreviates(name, nearest)
    return f"unknown flag {name}" + (f"; the nearest one is {nearest}" if near else "")


def _likeness(name: str, known: str) -> float:
    """Return how alike two flags are: by letters, by whole words of both, by how they begin."""
    words, others = set(_words(name)), set(_words(known))
    shared = len(words & others) / len(words | others)
    begins = _abbreviates(name, known) + known.startswith(name)
    return _letters_alike(name, known) + shared + begins


def _letters_alike(name: str, known: str) -> float:
    return difflib.SequenceMatcher(None, name.strip("-"), known.strip("-")).ratio()


def _abbreviates(name: str, known: str) -> bool:
    """Return whether each word of a flag is, or begins, a word of a known one, in that order.

    >>> _abbreviates("--grad-accum", "--gradient-accumulation-steps")
    True
    """
    others = iter(_words(known))
    return all(any(other.startswith(word) for other in others) for word in _words(name))


def _words(name: str) -> list[str]:
    return name.strip("-").split("-")


def _switch(name: str, rest: list[str], *, given: bool) -> str:
    """Return the switch that a value after it means, and take the value away."""
    word = rest[0].lower() if rest else ""
    if word not in _WORDS:
        if given or not (word == "" or word.startswith("-")):
            raise UsageError(f"{name} takes True or False, or nothing, not {rest[0]}")
        return name
    rest.pop(0)
    if word in _TRUE:
        return name
    return "--" + name.removeprefix("--no-") if name.startswith("--no-") else "--no-" + name[2:]
