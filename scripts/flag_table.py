"""Writes the reference of commands and flags from the settings, or checks that it is up to date.

    python scripts/flag_table.py --write | --check

The page is ``docs/reference/commands.md``: a section for each command, and one for each group of
flags that several commands share.
"""

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.cli import COMMANDS
from pipeline.commands.flags import COMMON
from pipeline.config import HubOptions, PrepareOptions
from pipeline.config.fields import flag
from pipeline.config.fit_options.model import ModelOptions
from pipeline.config.fit_options.monitoring import MonitoringOptions
from pipeline.config.fit_options.training import TrainingOptions
from pipeline.generation.config import GenerationOptions

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "commands.md"
START, END = "<!-- flags: start -->", "<!-- flags: end -->"
GROUPS: dict[type[Any], tuple[str, str]] = {
    PrepareOptions: ("Data options", "Which rows are made."),
    TrainingOptions: (
        "Training options",
        "Steps, batches, learning rate, optimizer, precision.",
    ),
    MonitoringOptions: ("Monitoring options", "What is logged, evaluated and saved, and when."),
    ModelOptions: ("Model options", "Weights, LoRA, sharding, processes."),
    HubOptions: ("Hub options", "What is pushed to the Hugging Face hub."),
    GenerationOptions: ("Generation options", "How answers are generated."),
}
"""Flags that several commands share, by the class of settings that has them."""


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    fresh = f"{before}{START}\n" + "\n".join([*sections(), END]) + after
    if "--write" in sys.argv:
        PAGE.write_text(fresh, encoding="utf-8")
    elif fresh != text:
        sys.exit(f"{PAGE.name} is not up to date; run python scripts/flag_table.py --write")


def sections() -> Iterator[str]:
    """Yield the lines of all sections."""
    for command, (config_class, _, text) in COMMANDS.items():
        yield from ("", f"## `duet {command}`", "", text, "", *usage(command, config_class), "")
        own = [f for f in dataclasses.fields(config_class) if group_of(f, config_class) is None]
        yield from table(own)
        if groups := groups_of(config_class):
            links = ", ".join(f"[{GROUPS[g][0]}](#{anchor(GROUPS[g][0])})" for g in groups)
            yield from ("", f"And the {links}.")
    for group, (title, text) in GROUPS.items():
        users = [
            f"`{c}`"
            for c, (config_class, _, _) in COMMANDS.items()
            if group in groups_of(config_class)
        ]
        yield from ("", f"## {title}", "", f"{text} Of {', '.join(users)}.", "")
        yield from table([f for f in dataclasses.fields(group) if group_of(f, group) is group])
    yield from ("", "## Common options", "", "Of every command.", "")
    yield from ("| flag | meaning |", "| --- | --- |")
    for name, common in COMMON.items():
        yield f"| `{name}` | {common.help} |"


def usage(command: str, config_class: type[Any]) -> Iterator[str]:
    """Yield a command line with all that must be given."""
    required = [f for f in dataclasses.fields(config_class) if f.default is dataclasses.MISSING]
    words = [
        f.name.upper() if f.metadata["positional"] else f"{flag(f.name)} {placeholder(f.name)}"
        for f in sorted(required, key=lambda f: not f.metadata["positional"])
    ]
    yield from ("```text", " ".join(["duet", command, *words, "[flags]"]), "```")


def placeholder(name: str) -> str:
    """Return what stands for the value of a flag."""
    return name.rpartition("_")[2].upper()


def group_of(f: "dataclasses.Field[Any]", config_class: type[Any]) -> type[Any] | None:
    """Return the group that a field belongs to; None where it is the command's own."""
    owner = next(c for c in config_class.__mro__ if f.name in inspect.get_annotations(c))
    return owner if owner in GROUPS else None


def groups_of(config_class: type[Any]) -> list[type[Any]]:
    """Return the groups of a command."""
    return [group for group in GROUPS if issubclass(config_class, group)]


def table(fields: "list[dataclasses.Field[Any]]") -> Iterator[str]:
    """Yield the lines of a table: a row for each flag."""
    if fields:
        yield from ("| flag | default | meaning |", "| --- | --- | --- |")
    for f in sorted(fields, key=lambda f: f.default is not dataclasses.MISSING):
        name = f.name.upper() if f.metadata["positional"] else flag(f.name)
        meaning = f.metadata["help"].replace("|", "\\|").replace("</s>", "`</s>`")
        yield f"| `{name}` | {default_of(f)} | {meaning} |"


def default_of(f: "dataclasses.Field[Any]") -> str:
    if f.default is dataclasses.MISSING:
        return "required"
    if f.default in (None, (), ""):
        return ""
    if isinstance(f.default, bool):
        return "on" if f.default else "off"
    return f"`{f.default}`"


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


if __name__ == "__main__":
    main()
