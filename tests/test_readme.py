"""The README's commands: each is one that the command line, or the justfile, understands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS
from pipeline.flags import modernise
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Return every ``duet …`` and ``-m pipeline… …`` command of the README, split into words."""
    blocks = re.findall(r"(?:^    .*\n)+", README, re.MULTILINE)
    text = "".join(blocks).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        line = line.strip().removeprefix("$ ").rstrip("…")
        if match := re.search(r"(?:^duet|-m pipeline|scripts/duet)(\.train)? (.+)", line):
            words = shlex.split(match[2], comments=True)
            found.append(["train", *words] if match[1] else words)
    return found


def test_there_are_commands_to_test() -> None:
    assert {words[0] for words in commands()} >= {"prepare", "fit", "train", "inspect", "chat"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_understood(words: list[str]) -> None:
    command, *args = words
    modernise(args, COMMANDS[command][0])


def test_the_recipes_are_there() -> None:
    justfile = (ROOT / "justfile").read_text(encoding="utf-8")
    recipes = set(re.findall(r"^([a-z][a-z-]*)[^:\n]*:", justfile, re.MULTILINE))
    assert recipes >= {"demo", "test", "lint", "types", "bench", "docs-check", "default"}
    named = set(
        re.findall(r"\bjust ([a-z][a-z-]*)", README + (ROOT / "CONTRIBUTING.md").read_text())
    )
    assert named <= recipes, named - recipes


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_of_flags_is_fresh() -> None:
    command = [sys.executable, "scripts/flag_table.py", "--check"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_the_paths_that_the_map_names_are_there() -> None:
    for path in re.findall(r"`(pipeline/[a-z_/]+\.py)`", README):
        assert (ROOT / path).is_file(), path
    names = re.findall(r"`(pipeline/[a-z_/]+\.py)`: ((?:`\w+(?:\.\w+)?`(?:, )?)+)", README)
    assert len(names) > 4
    for path, text in names:
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", text):
            assert re.search(rf"^(?:    )?(?:def |class )?{name}\b", source, re.MULTILINE), name


@pytest.mark.slow
def test_the_demo_ends_well(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "scripts/demo.py"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "The loss fell from" in result.stdout
