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

from pipeline.config import flag

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_WORDS = _TRUE + _FALSE

ALIASES = {"--evaluation-strategy": "--eval-strategy"}
"""Older names of flags that are still written."""

WITHOUT_MEANING = {
    "--dataloader-num-workers": "rows are memory-mapped",
    "--dataloader-pin-memory": "the loop decides",
    "--ddp-find-unused-parameters": "every parameter is used",
    "--disable-tqdm": "a bar is shown on a terminal only",
    "--do-eval": "see --eval-strategy",
    "--do-train": "fit always trains",
    "--local-rank": "the launcher's environment says it",
    "--logging-dir": "trackers write below --output-dir",
    "--logging-strategy": "see --logging-steps",
    "--overwrite-output-dir": "a run goes on from its newest checkpoint",
    "--remove-unused-columns": "only the columns that are needed are read",
    "--save-safetensors": "weights are always saved as safetensors",
}
"""Flags of the Hugging Face trainer that mean nothing here, and why; ``train`` accepts them."""


class UsageError(Exception):
    """A command line that cannot be understood; exit code 2."""


class Arguments(NamedTuple):
    """A command line in today's form, and what to say of the rest."""

    args: list[str]
    notes: list[str]


def command_of(config_class: type[Any], run: Callable[[Any], None]) -> Callable[..., None]:
    """Return the function that Typer makes a command of: one flag a field, help from the field."""

    def command(**values: Any) -> None:
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        run(config_class(**given))

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


def modernise(
    args: Sequence[str], config_class: type[Any], *, accept_without_meaning: bool
) -> Arguments:
    """Rewrite a command's arguments to today's form.

    Args:
        args: What stands behind the command's name.
        config_class: The command's settings.
        accept_without_meaning: Accept flags of the Hugging Face trainer that mean nothing here.

    Raises:
        UsageError: An unknown flag; the message names the nearest one.

    >>> from pipeline.config import FitConfig
    >>> modernise(["--bf16", "True", "--data_path=x"], FitConfig, accept_without_meaning=False).args
    ['--bf16', '--data-path', 'x']
    """
    flags = flags_of(config_class)
    result, notes, rest = [], list[str](), list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--") or arg == "--":
            result.append(arg)
            continue
        name, equals, value = arg.partition("=")
        name = name.lower().replace("_", "-")
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
        elif accept_without_meaning and name in WITHOUT_MEANING:
            if rest and not rest[0].startswith("--"):
                rest.pop(0)
            notes.append(f"{name} means nothing here ({WITHOUT_MEANING[name]}); ignored")
        else:
            valued = bool(rest) and not rest[0].startswith("--") and rest[0].lower() not in _WORDS
            likely = [known for known, switch in flags.items() if not (valued and switch)]
            nearest = max(likely, key=lambda known: _likeness(name, known))
            raise UsageError(f"unknown flag {name}; the nearest one is {nearest}")
    return Arguments(result, notes)


def _likeness(name: str, known: str) -> float:
    """Return how alike two flags are: by their letters, and by whole words that both have."""
    words = [set(flag.strip("-").split("-")) for flag in (name, known)]
    shared = len(words[0] & words[1]) / len(words[0] | words[1])
    return difflib.SequenceMatcher(None, name, known).ratio() + shared


def _switch(name: str, rest: list[str], *, given: bool) -> str:
    """Return the switch that a value behind it means, and take the value away."""
    word = rest[0].lower() if rest else ""
    if word not in _WORDS:
        if given or not (word == "" or word.startswith("-")):
            raise UsageError(f"{name} takes True or False, or nothing, not {rest[0]}")
        return name
    rest.pop(0)
    if word in _TRUE:
        return name
    return "--" + name.removeprefix("--no-") if name.startswith("--no-") else "--no-" + name[2:]
