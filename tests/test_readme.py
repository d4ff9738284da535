"""The README: short, with recipes that are there. Its commands and links: ``test_docs.py``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = (ROOT / "docs" / "howto" / "from-train-flant5.md").read_text(encoding="utf-8")


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) < 150


def test_the_recipes_are_there() -> None:
    justfile = (ROOT / "justfile").read_text(encoding="utf-8")
    recipes = set(re.findall(r"^([a-z][a-z-]*)[^:\n]*:", justfile, re.MULTILINE))
    assert recipes >= {"demo", "test", "lint", "types", "bench", "docs", "docs-check", "default"}
    pages = [
        README,
        *(path.read_text("utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]),
    ]
    named = {
        name
        for page in pages
        for name in re.findall(r"(?:`|^ *|\$ )just ([a-z][a-z-]*)", page, re.M)
    }
    assert named <= recipes, named - recipes


def test_the_reference_of_flags_is_fresh() -> None:
    command = [sys.executable, "scripts/flag_table.py", "--check"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_the_paths_that_the_map_names_are_there() -> None:
    for path in re.findall(r"`(pipeline/[a-z_/]+\.py)`", MAP):
        assert (ROOT / path).is_file(), path
    names = re.findall(r"`(pipeline/[a-z_/]+\.py)`: ((?:`\w+(?:\.\w+)?`(?:, )?)+)", MAP)
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
