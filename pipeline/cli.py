"""The command line: builds a command's settings, imports its stage late, prints what it made.

stdout carries the result alone (a path, an answer); everything else goes to stderr. Exit codes:
0; 1 with one line on stderr; 2 for a command line that cannot be understood.
"""

import functools
import os
import pkgutil
import sys
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import __version__
from pipeline.commands.flags import UsageError, modernise, read_values
from pipeline.commands.launch import is_launched_here, is_to_say
from pipeline.commands.run_file import RunFile, leave_settings, read_run_files, write_run_file
from pipeline.config.run_file import json_schema
from pipeline.console import streams
from pipeline.console.logs import note
from pipeline.console.progress import importing
from pipeline.errors import DuetError

if TYPE_CHECKING:
    from pipeline.config import (
        CacheConfig,
        DoctorConfig,
        ExportConfig,
        FitConfig,
        InspectConfig,
        PrepareConfig,
        TrainConfig,
        VerifyConfig,
    )
    from pipeline.generation.config import ChatConfig, EvalConfig, GenerateConfig, ServeConfig
    from pipeline.report.config import ReportConfig


def _prepare(config: "PrepareConfig") -> None:
    from pipeline.prepare.stage import prepare

    folder = prepare(config)
    leave_settings(folder, "prepare", config)
    print(folder)


def _fit(config: "FitConfig") -> None:
    with importing():
        from pipeline.commands.training import run_fit

    run_fit(config)


def _train(config: "TrainConfig") -> None:
    with importing():
        from pipeline.commands.training import run_train

    run_train(config)


def _inspect(config: "InspectConfig") -> None:
    from pipeline.inspection.stage import inspect

    inspect(config)


def _report(config: "ReportConfig") -> None:
    from pipeline.report.stage import report

    print(report(config))


def _verify(config: "VerifyConfig") -> None:
    from pipeline.commands.verify import verify

    for line in verify(config):
        print(line)


def _cache(config: "CacheConfig") -> None:
    from pipeline.commands.cache import cache

    for line in cache(config):
        print(line)


def _doctor(config: "DoctorConfig") -> None:
    from pipeline.commands.doctor import doctor

    print(doctor(config))


def _chat(config: "ChatConfig") -> None:
    with importing():
        from pipeline.generation.chat.stage import chat

    chat(config)


def _generate(config: "GenerateConfig") -> None:
    with importing():
        from pipeline.generation.generate import generate

    print(generate(config))


def _eval(config: "EvalConfig") -> None:
    import json

    with importing():
        from pipeline.generation.evaluate.report import table
        from pipeline.generation.evaluate.stage import evaluate

    report = evaluate(config)
    print("\n".join(table(report)), file=sys.stderr)
    print(json.dumps(report, indent=2))


def _serve(config: "ServeConfig") -> int:
    with importing():
        from pipeline.generation.server.stage import serve

    return serve(config)


def _export(config: "ExportConfig") -> None:
    with importing():
        from pipeline.export import export

    print(export(config))


class Commands(UserDict[str, tuple[Any, Any, str]]):
    """Each command's settings class, function and help; the class is imported when it is used."""

    def __getitem__(self, name: str) -> tuple[type[Any], Any, str]:
        """Return what a command is."""
        config_class, function, text = self.data[name]
        if isinstance(config_class, str):
            config_class = pkgutil.resolve_name(config_class)
        return config_class, function, text


COMMANDS = Commands(
    {
        "prepare": (
            "pipeline.config:PrepareConfig",
            _prepare,
            "Turn ShareGPT records into a prepared folder.",
        ),
        "fit": ("pipeline.config:FitConfig", _fit, "Train a Flan-T5 on a prepared folder."),
        "train": (
            "pipeline.config:TrainConfig",
            _train,
            "Prepare and fit in one command, with the flags of train_flant5.",
        ),
        "inspect": (
            "pipeline.config:InspectConfig",
            _inspect,
            "Show what a prepared folder holds, and what was left out.",
        ),
        "report": (
            "pipeline.report.config:ReportConfig",
            _report,
            "Write an HTML page with charts of a prepared folder, or of runs.",
        ),
        "verify": (
            "pipeline.config:VerifyConfig",
            _verify,
            "Check every file of a folder against its checksums.",
        ),
        "cache": (
            "pipeline.config:CacheConfig",
            _cache,
            "List or prune what prepare keeps for later runs.",
        ),
        "doctor": (
            "pipeline.config:DoctorConfig",
            _doctor,
            "Show versions, devices, disk, and what is missing.",
        ),
        "chat": (
            "pipeline.generation.config:ChatConfig",
            _chat,
            "Chat with a trained model on a terminal.",
        ),
        "generate": (
            "pipeline.generation.config:GenerateConfig",
            _generate,
            "Answer many conversations with a trained model.",
        ),
        "eval": (
            "pipeline.generation.config:EvalConfig",
            _eval,
            "Evaluate trained models on known answers.",
        ),
        "serve": (
            "pipeline.generation.config:ServeConfig",
            _serve,
            "Serve a trained model: an OpenAI-compatible API and a chat page.",
        ),
        "export": (
            "pipeline.config:ExportConfig",
            _export,
            "Export a trained model to another format.",
        ),
    }
)

_INTERRUPTED = 130  # what a shell expects of a program that ctrl-c ended


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and end the process with its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    streams.write_any_text()
    try:
        code = run(argv)
        streams.flush()
    except (OSError, SystemExit) as error:  # Typer makes an exit of a broken pipe
        if streams.is_reader_gone():
            code = streams.READER_IS_GONE
        elif isinstance(error, OSError):
            print(streams.cannot_write(error), file=sys.stderr)
            code = 1
        else:
            raise
        streams.write_no_more()
    if argv[:1] == ["prepare"]:
        # What a preparation holds needs no taking apart, which would take a tenth of its time.
        os._exit(code)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run a command line; return its exit code."""
    argv = argv or ["--help"]
    if argv == ["--version"]:
        print(f"duet {__version__}")
        return 0
    command, file, write = argv[0], RunFile(), None
    try:
        if command in COMMANDS:
            config_class = COMMANDS[command][0]
            args, notes, common = modernise(argv[1:], config_class)
            argv = [command, *args]
            if "--config-schema" in common:
                return _print_schema(command, config_class)
            file = read_run_files(common.get("--config", ()), command, config_class)
            for text in (*notes, *file.notes):
                note(text)
            if "--write-config" in common:
                path = Path(common["--write-config"][-1])
                write = functools.partial(write_run_file, path, command, config_class)
        code = _run_command(argv, file.values, write)
    except UsageError as error:
        help_of = f"duet {command} --help" if command in COMMANDS else "duet --help"
        print(f"usage: {error}; see {help_of}", file=sys.stderr)
        return 2
    except DuetError as error:
        if not is_launched_here():  # else the file is none of the user's
            error = file.located(error, argv)
        if is_to_say(str(error)):
            print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise  # ``main`` knows whose pipe it is
    except OSError as error:  # stdout itself: its disk is full
        print(streams.cannot_write(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _run_command(
    argv: Sequence[str], from_files: Mapping[str, Any], write: Callable[[Any], Any] | None
) -> Any:
    if argv[0] in COMMANDS and write is None:
        config_class, function, _ = COMMANDS[argv[0]]
        values = read_values(argv[1:], config_class, from_files)
        if values is not None:
            return function(config_class(**values))
    # Imported late: for help, and to say what is wrong.
    from pipeline.commands.app import run_app

    return run_app(COMMANDS, argv, from_files, write)


def _print_schema(command: str, config_class: type[Any]) -> int:
    import json

    print(json.dumps(json_schema(command, config_class), indent=2))
    return 0
