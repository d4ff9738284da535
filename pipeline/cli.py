"""The command line: builds a command's settings, imports its stage late, prints what it made.

stdout carries the result alone (a path, an answer); everything else goes to stderr. Exit codes:
0; 1 with one line on stderr; 2 for a command line that cannot be understood.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from pipeline import __version__
from pipeline.config import (
    CacheConfig,
    ExportConfig,
    FitConfig,
    InspectConfig,
    PrepareConfig,
    TrainConfig,
    VerifyConfig,
)
from pipeline.errors import DuetError, OutputError
from pipeline.flags import UsageError, command_of, modernise
from pipeline.generation.config import ChatConfig, EvalConfig, GenerateConfig, ServeConfig
from pipeline.logs import note, print_result
from pipeline.report.config import ReportConfig


def _prepare(config: PrepareConfig) -> None:
    from pipeline.prepare.stage import prepare

    print(prepare(config))


def _fit(config: FitConfig) -> None:
    from pipeline.fit.stage import fit

    output = fit(config)
    if not config.dry_run:
        print_result(output)


def _train(config: TrainConfig) -> None:
    from pipeline.stages import train

    print_result(train(config))


def _inspect(config: InspectConfig) -> None:
    from pipeline.inspection import inspect_prepared

    # All of it first: a folder that is damaged gives its one line and nothing else.
    print("\n".join(list(inspect_prepared(config))))


def _report(config: ReportConfig) -> None:
    from pipeline.report.stage import report

    print(report(config))


def _verify(config: VerifyConfig) -> None:
    from pipeline.verification import verify

    for line in verify(config):
        print(line)


def _cache(config: CacheConfig) -> None:
    from pipeline.housekeeping import cache

    for line in cache(config):
        print(line)


def _chat(config: ChatConfig) -> None:
    from pipeline.generation.chat.stage import chat

    chat(config)


def _generate(config: GenerateConfig) -> None:
    from pipeline.generation.generate import generate

    print(generate(config))


def _eval(config: EvalConfig) -> None:
    import json

    from pipeline.generation.evaluate.report import table
    from pipeline.generation.evaluate.stage import evaluate

    report = evaluate(config)
    print("\n".join(table(report)), file=sys.stderr)
    print(json.dumps(report, indent=2, ensure_ascii=False))


def _serve(config: ServeConfig) -> int:
    from pipeline.generation.server.stage import serve

    return serve(config)


def _export(config: ExportConfig) -> None:
    from pipeline.export import export

    print(export(config))


COMMANDS: dict[str, tuple[type[Any], Any, str]] = {
    "prepare": (
        PrepareConfig,
        _prepare,
        "Turn ShareGPT records into a prepared folder.",
    ),
    "fit": (FitConfig, _fit, "Train a Flan-T5 on a prepared folder."),
    "train": (
        TrainConfig,
        _train,
        "Prepare and fit in one command, with the flags of train_flant5.",
    ),
    "inspect": (
        InspectConfig,
        _inspect,
        "Show what a prepared folder holds, and what was left out and why.",
    ),
    "report": (
        ReportConfig,
        _report,
        "Write an HTML page with charts of a prepared folder, or of runs.",
    ),
    "verify": (
        VerifyConfig,
        _verify,
        "Check every file of a folder against its checksums.",
    ),
    "cache": (
        CacheConfig,
        _cache,
        "List or prune what prepare keeps for later runs.",
    ),
    "chat": (
        ChatConfig,
        _chat,
        "Chat with a trained model on a terminal.",
    ),
    "generate": (
        GenerateConfig,
        _generate,
        "Answer many conversations with a trained model.",
    ),
    "eval": (
        EvalConfig,
        _eval,
        "Evaluate trained models on known answers.",
    ),
    "serve": (
        ServeConfig,
        _serve,
        "Serve a trained model: an OpenAI-compatible API and a chat page.",
    ),
    "export": (
        ExportConfig,
        _export,
        "Export a trained model to another format.",
    ),
}
"""Each command's settings, function and help."""


_INTERRUPTED = 130  # what a shell expects of a program that ctrl-c ended


def make_app() -> typer.Typer:
    """Make the Typer application: one command for each settings class."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Fine-tune Flan-T5 on conversations: prepare once, then fit.",
    )
    for name, (config_class, run, text) in COMMANDS.items():
        app.command(name, help=text)(command_of(config_class, run))
    return app


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and end the process with its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    code = run(argv)
    if argv[:1] == ["prepare"]:
        # What a preparation holds needs no taking apart, which would take a tenth of its time.
        with contextlib.suppress(OSError):  # else Python says what it always says
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run a command line; return its exit code."""
    argv = argv or ["--help"]
    if argv == ["--version"]:
        print(f"duet {__version__}")
        return 0
    command = argv[0]
    try:
        if command in COMMANDS:
            args, notes = modernise(argv[1:], COMMANDS[command][0])
            argv = [command, *args]
            for text in notes:
                note(text)
        code = make_app()(argv, prog_name="duet", standalone_mode=False)
    except (UsageError, typer.exceptions.TyperException) as error:
        return _usage(error, command if command in COMMANDS else "")
    except DuetError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # stdout itself: its disk is full
        print(
            OutputError(
                "cannot write",
                where=error.filename or "stdout",
                got=error.strerror or error,
                do="free some space, or write elsewhere",
            ),
            file=sys.stderr,
        )
        return 1
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _usage(error: Exception, command: str) -> int:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    param = getattr(error, "param", None)
    if param is not None and param.opts and param.opts[0] not in text:
        text = f"{param.opts[0]}: {text}"
    text = " ".join(text.replace("Value error, ", "").split()).rstrip(".")
    help_of = f"duet {command} --help".replace("  ", " ")
    print(f"usage: {text}; see {help_of}", file=sys.stderr)
    return 2
