"""The Typer application: what help is made of, and what says how a command line is wrong.

A command line that is right needs none of it (``flags.read_values``): Typer converts values with
pydantic, and importing both takes longer than all else that ``prepare`` does by itself.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from pipeline.commands.flags import COMMON, CommonFlag, UsageError, is_switch
from pipeline.config.fields import flag, required_first

_TYPERS_WORDS = re.compile(r"Input should be a valid (\w+), unable to parse string as an? \w+")
_LONGEST_CHOICES = 60
"""Characters of names that the help shows in place of a value: they stand on one line."""


def run_app(
    commands: Mapping[str, tuple[type[Any], Any, str]],
    argv: Sequence[str],
    values: Mapping[str, Any],
    write: Callable[[Any], Any] | None = None,
) -> Any:
    """Run a command line; return what its command does, or an exit code.

    Args:
        commands: Each command's settings, function and help.
        argv: The command line.
        values: What files of settings say, by field name.
        write: Takes a command's settings in its place; what is required may be missing.

    Raises:
        UsageError: It cannot be understood.
        KeyboardInterrupt: The user ended it.
    """
    app = typer.Typer(
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Fine-tune Flan-T5 on conversations: prepare once, then fit.",
        context_settings={"max_content_width": 120},
    )
    for name, (config_class, run, text) in commands.items():
        app.command(name, help=text)(_command_of(config_class, run, write=write))
    try:
        return app(argv, prog_name="duet", standalone_mode=False, default_map={argv[0]: values})
    except typer.exceptions.TyperException as error:
        raise UsageError(_usage_text(error)) from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error


def _usage_text(error: Exception) -> str:
    """Return what Typer says of a command line, as one line."""
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    param = getattr(error, "param", None)
    if param is not None and param.opts and param.opts[0] not in text:
        text = f"{param.opts[0]}: {text}"
    text = " ".join(text.replace("Value error, ", "").split()).rstrip(".")
    return _TYPERS_WORDS.sub(r"give a valid \1", text)


def _command_of(
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
    elif is_switch(hint):
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
