"""Writes the README's tables of flags from the settings classes, or checks that they are true.

python scripts/flag_table.py --write | --check
"""

import dataclasses
import sys
import typing
from pathlib import Path

from pipeline.cli import COMMANDS
from pipeline.config.fields import flag

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- flags: start -->", "<!-- flags: end -->"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    fresh = f"{before}{START}\n{tables()}\n{END}{after}"
    if "--write" in sys.argv:
        README.write_text(fresh, encoding="utf-8")
    elif fresh != text:
        sys.exit("README.md: the table of flags is old; run python scripts/flag_table.py --write")


def tables() -> str:
    """Return one table: a row for each flag, with the commands that take it."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for command, (config_class, _, _) in COMMANDS.items():
        for f in dataclasses.fields(config_class):
            name = f.name.upper() if f.metadata["positional"] else flag(f.name)
            row = (
                name,
                default_of(f),
                f.metadata["help"].replace("|", "\\|").replace("</s>", "`</s>`"),
            )
            rows.setdefault(row, []).append(command)
    lines = ["| flag | commands | default | meaning |", "| --- | --- | --- | --- |"]
    for (name, default, meaning), commands in rows.items():
        lines.append(f"| `{name}` | {', '.join(commands)} | {default} | {meaning} |")
    return "\n".join(lines)


def default_of(f: "dataclasses.Field[typing.Any]") -> str:
    if f.default is dataclasses.MISSING:
        return "required"
    if f.default in (None, (), ""):
        return ""
    if isinstance(f.default, bool):
        return "on" if f.default else "off"
    return f"`{f.default}`"


if __name__ == "__main__":
    main()
