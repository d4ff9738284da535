"""Turns a settings class into a command's flags, and old ways of writing flags into today's.

The Hugging Face trainers write ``--bf16 True`` and ``--data_path``; a command line that worked
there works here: an underscore is read as a dash, and a switch also takes a value.
"""

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from pipeline.commands.trainer_flags import ALIASES, IGNORED, REFUSED
from pipeline.config import FitOptions
from pipeline.config.fields import flag, required_first
from pipeline.recipes import recipe_names

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
_WORDS = TRUE + FALSE

_OFF = (*FALSE, "none", "null", "")
"""Values that switch a flag off."""
_LONGEST_CHOICES = 60
"""Characters of names that the help shows in place of a value: they stand on one line."""
_TYPERS_WORDS = re.compile(r"Input should be a valid (\w+), unable to parse string as an? \w+")
_NEAR = 0.78
"""How alike two flags' letters must be for one to be a misspelling of the other."""


class UsageError(Exception):
    """A command line that cannot be understood; exit code 2."""


def usage_text(error: Exception, command: str) -> str:
    """Return the one line for a command line that cannot be understood."""
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    param = getattr(error, "param", None)
    if param is not None and param.opts and param.opts[0] not in text:
        text = f"{param.opts[0]}: {text}"
    text = " ".join(text.replace("Value error, ", "").split()).rstrip(".")
    text = _TYPERS_WORDS.sub(r"give a valid \1", text)
    help_of = f"duet {command} --help".replace("  ", " ")
    return f"usage: {text}; see {help_of}"


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


def command_of(
    config_class: type[Any], run: Callable[[Any], Any], *, write: Callable[[Any], Any] | None = None
) -> Callable[..., Any]:
    """Return the function that Typer makes a command of: one flag a field, help from the field.

    Args:
        config_class: Its settings class.
        run: Takes the settings.
        write: Takes their values by name, in place of ``run``; what is required may be missing.
    """

    def command(**values: Any) -> Any:
        given = {
            f.name: tuple(v) if isinstance(v := values[f.name], list) else v
            for f in dataclasses.fields(config_class)
        }
        return run(config_class(**given)) if write is None else write(given)

    hints = typing.get_type_hints(config_class)
    parameters = [
        _parameter(f, hints[f.name], optional=write is not None)
        for f in required_first(config_class)
    ]
    parameters += [_common_parameter(name, common) for name, common in COMMON.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(f: "dataclasses.Field[Any]", hint: Any, *, optional: bool) -> inspect.Parameter:
    name, required = flag(f.name), f.default is dataclasses.MISSING
    default = inspect.Parameter.empty if required else f.default
    if typing.get_origin(hint) is tuple:
        hint = list[str]
        default = default if required else list(typing.cast("tuple[str, ...]", f.default))
    if required and optional:
        hint, default = hint | None, None
    if f.metadata["positional"]:
        info: Any = typer.Argument(help=f.metadata["help"], metavar=f.name.upper())
    elif _is_switch(hint):
        # Typer would say [default: no-bf16].
        off = "" if f.default is None else f"  [default: {'on' if f.default else 'off'}]"
        text = f.metadata["help"] + off
        info = typer.Option(f"{name}/--no-{name[2:]}", help=text, show_default=False)
    else:
        info = typer.Option(name, help=f.metadata["help"], metavar=_placeholder(f.name, hint))
    return inspect.Parameter(
        f.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[hint, info], default=default
    )


def _placeholder(name: str, hint: Any) -> str | None:
    """Return what stands for a value in the help; None: what Typer makes of the type.

    >>> _placeholder("output_dir", str), _placeholder("stop", list[str]), _placeholder("seed", int)
    ('<path>', '<text>', None)
    """
    kinds = (hint, *typing.get_args(hint))
    if str in kinds:
        return "<path>" if name.endswith(("_path", "_dir")) else "<text>"
    choices = [c for kind in kinds for c in typing.get_args(kind) if isinstance(c, str)]
    return "<name>" if sum(map(len, choices)) > _LONGEST_CHOICES else None


def _common_parameter(name: str, common: CommonFlag) -> inspect.Parameter:
    """Return what the help shows; ``modernise`` has taken the flag away before Typer reads it."""
    hint: Any = bool if common.is_switch else str | None
    metavar = None if common.is_switch else "<path>"
    return inspect.Parameter(
        name[2:].replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[hint, typer.Option(name, help=common.help, metavar=metavar)],
        default=False if common.is_switch else None,
    )


def _is_switch(hint: Any) -> bool:
    return hint is bool or bool in typing.get_args(hint)


def flags_of(config_class: type[Any]) -> dict[str, bool]:
    """Return the flags of a command's settings, and whether each is a switch."""
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
    flags = flags_of(config_class) | {name: each.is_switch for name, each in COMMON.items()}
    trains = issubclass(config_class, FitOptions)
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
