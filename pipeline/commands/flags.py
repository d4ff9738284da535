"""Turns a settings class into a command's flags, and old ways of writing flags into today's.

The Hugging Face trainers write ``--bf16 True`` and ``--data_path``; a command line that worked
there works here: an underscore is read as a dash, and a switch also takes a value.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.commands.trainer_flags import ALIASES, IGNORED, REFUSED
from pipeline.config.fields import flag
from pipeline.config.kinds import kinds_of
from pipeline.recipes import recipe_names

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
_WORDS = TRUE + FALSE

_OFF = (*FALSE, "none", "null", "")
"""Values that switch a flag off."""
_NEAR = 0.78
"""How alike two flags' letters must be for one to be a misspelling of the other."""


class UsageError(Exception):
    """A command line that cannot be understood; exit code 2."""


class CommonFlag(NamedTuple):
    """A flag that every command takes, and that is no setting of it."""

    help: str
    is_switch: bool = False


COMMON = {
    "--config": CommonFlag(
        "A YAML file of settings, with these flags' names as keys, or a recipe: "
        f"{', '.join(recipe_names())}. Flags win over it, and of two files the later. Repeatable."
    ),
    "--write-config": CommonFlag(
        "Write the settings, with comments, to this YAML file and do nothing else."
    ),
    "--config-schema": CommonFlag(
        "Print the JSON Schema of such files, for editors, and do nothing else.", is_switch=True
    ),
}


class Arguments(NamedTuple):
    """A command line in today's form, and what to say of the rest."""

    args: list[str]
    notes: list[str]
    common: dict[str, list[str]]
    """The flags of ``COMMON`` that stand in it, each with its values."""


def is_switch(hint: Any) -> bool:
    """Return whether a setting of this type is on or off."""
    return hint is bool or bool in typing.get_args(hint)


def flags_of(config_class: type[Any]) -> dict[str, bool]:
    """Return the flags of a command's settings, and whether each is a switch."""
    hints = typing.get_type_hints(config_class)
    flags = {}
    for f in dataclasses.fields(config_class):
        if not f.metadata["positional"]:
            flags[flag(f.name)] = switch = is_switch(hints[f.name])
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
    flags = flags_of(config_class) | {name: each.is_switch for name, each in COMMON.items()}
    trains = config_class.takes_trainer_flags
    result, notes, rest = list[str](), list[str](), list(args)
    common: dict[str, list[str]] = {}
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
            return Arguments(["--help"], [], {})
        if equals:
            rest.insert(0, value)
        if flags.get(name):
            switch = _switch(name, rest, given=bool(equals))
            if name in COMMON:
                common[switch] = []
            else:
                result.append(switch)
        elif name in flags:
            if not rest or (rest[0].startswith("--") and not equals):
                raise UsageError(f"{name} needs a value, got {rest[0] if rest else 'nothing'}")
            value = rest.pop(0)
            if name in COMMON:
                common.setdefault(name, []).append(value)
            else:
                result += [name, value]
        else:
            valued = bool(rest) and (bool(equals) or not rest[0].startswith("--"))
            given = rest.pop(0) if valued else None
            if not trains or (reason := ignored(name, given)) is None:
                raise UsageError(_unknown(name, given, flags))
            notes.append(f"{name} is ignored: {reason}")
    return Arguments(result, notes, common)


def read_values(
    args: Sequence[str], config_class: type[Any], from_files: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the settings of a command line by field name; None where it asks for help or is wrong.

    Args:
        args: What ``modernise`` made of it.
        config_class: The command's settings.
        from_files: What files of settings say; the command line wins.

    >>> from pipeline.config import InspectConfig
    >>> read_values(["data", "--rows", "3"], InspectConfig, {"split": "eval"})
    {'split': 'eval', 'prepared': 'data', 'rows': 3}
    >>> read_values(["data", "--rows", "three"], InspectConfig, {})
    """
    fields, kinds = dataclasses.fields(config_class), kinds_of(config_class)
    by_flag = {flag(f.name): f.name for f in fields if not f.metadata["positional"]}
    positional = next((f.name for f in fields if f.metadata["positional"]), None)
    found, rest = dict[str, Any](), list(args)
    while rest:
        arg = rest.pop(0)
        off = by_flag.get("--" + arg.removeprefix("--no-")) if arg.startswith("--no-") else None
        name = by_flag.get(arg, off) if arg.startswith("-") else positional
        if name is None or (name == positional and name in found and not kinds[name].is_list):
            return None
        if kinds[name].base is bool:
            found[name] = arg in by_flag
            continue
        try:
            value = kinds[name].parse(arg if name == positional else rest.pop(0))
        except ValueError:
            return None
        found[name] = (*found.get(name, ()), value) if kinds[name].is_list else value
    values = {**from_files, **found}
    required = {f.name for f in fields if f.default is dataclasses.MISSING}
    return values if required <= values.keys() else None


def ignored(name: str, value: str | None) -> str | None:
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
    near = nearest(name, value, flags)
    return f"unknown flag {name}" + (f"; the nearest one is {near}" if near else "")


def nearest(name: str, value: str | None, flags: dict[str, bool]) -> str | None:
    """Return the flag that an unknown one is likely to mean; None if there is none like it."""
    valued = value is not None and value.lower() not in _WORDS
    likely = [known for known, switch in flags.items() if not (valued and switch)]
    best = max(likely, key=lambda known: _likeness(name, known))
    near = _letters_alike(name, best) >= _NEAR or _abbreviates(name, best)
    return best if near else None


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
    if word in TRUE:
        return name
    return "--" + name.removeprefix("--no-") if name.startswith("--no-") else "--no-" + name[2:]
