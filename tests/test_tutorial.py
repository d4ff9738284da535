"""``docs/tutorial.md`` does what it says: its commands run, and print what it shows.

pytest tests/test_tutorial.py                    # up to the prepared folder
pytest tests/test_tutorial.py -m slow            # all of it, half a minute
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.cli import run
from tests.conftest import ROOT, undocumented

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
OFFLINE = PAGE[: PAGE.index("## A real model")]
"""What comes after wants a download, and time."""


@dataclass(frozen=True)
class Step:
    """A command of the page, and the lines that it shows."""

    command: str
    shown: tuple[str, ...]


def steps() -> list[Step]:
    """Return the commands of all blocks, in order."""
    found = []
    for _, block in re.findall(r"^(```+)console\n(.*?)^\1$", OFFLINE, re.MULTILINE | re.DOTALL):
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = text.splitlines()
            last = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
            found.append(Step("\n".join(lines[: last + 1]), tuple(lines[last + 1 :])))
    return found


def check(step: Step, output: str) -> None:
    """Compare the lines that a page shows with those that came; others may come between."""
    rest = iter(output.splitlines())
    for line in filter(lambda line: line.strip("… "), step.shown):
        pattern = re.compile(".*".join(re.escape(part) for part in line.rstrip().split("…")))
        assert any(pattern.fullmatch(came.rstrip()) for came in rest), (
            f"{line!r} is not in\n{output}"
        )


def test_its_data_is_prepared_as_it_shows(
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny-t5").symlink_to(tiny_t5)
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    prepared = ""
    for step in steps()[1:3]:
        line = step.command.replace("\\\n", " ").replace("$PREPARED", prepared)
        line = re.sub(r"^PREPARED=\$\((.*)\)$", r"\1", line)
        program, *args = shlex.split(line)
        assert program == "duet"
        assert run(args) == 0
        out, err = capsys.readouterr()
        prepared = prepared or out.strip()
        check(step, err + out)


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    for name in ("data", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = "\n".join(f"echo '@@'\n{step.command}" for step in steps())
    bin_folder = Path(sys.executable).parent
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    outputs = result.stdout.split("@@\n")[1:]
    assert len(outputs) == len(steps())
    for step, output in zip(steps(), outputs, strict=True):
        check(step, output)
    made = [*(tmp_path / "prepared").rglob("*"), *(tmp_path / "my-model").rglob("*")]
    kept = [path for path in made if not {".chunks", ".index", ".locks"} & set(path.parts)]
    assert not undocumented(path.name for path in kept if path.is_file())
