"""One process of a node works, the others wait; real processes under one parent."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
from pathlib import Path
from pipeline.errors import DuetError
from pipeline.fit.distributed.once_per_node import once_per_node

def work():
    print("works")
    time.sleep(0.3)
    {body}
    return Path("made")
try:
    print(once_per_node(work, Path(sys.argv[1])).name)
    print(once_per_node(lambda: Path("again"), Path(sys.argv[1])).name)
except DuetError as error:
    print(error)
    sys.exit(1)
"""


def launch(body: str, folder: Path) -> list[tuple[int, str]]:
    """Run two processes as a launcher does; return their exit codes and output."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(body=body), str(folder)],
            env={"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "PATH": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    return [(p.returncode, out) for p, out in zip(processes, outputs, strict=True)]


def test_one_works_and_the_other_takes_the_result(tmp_path: Path) -> None:
    assert launch("", tmp_path) == [(0, "made\nagain\n"), (0, "works\nmade\nagain\n")]


@pytest.mark.parametrize(
    ("body", "got"),
    [
        ("os.kill(os.getpid(), 9)", "the process that prepares died"),
        ("raise DuetError('bad', where='x', got='y', do='z')", "error: bad; where: x"),
    ],
)
def test_the_others_end_with_one_line_if_it_dies_or_fails(
    tmp_path: Path, body: str, got: str
) -> None:
    (waiting_code, waiting), (working_code, _) = launch(body, tmp_path)
    assert waiting_code == 1
    assert working_code != 0
    assert waiting.count("\n") == 1
    assert got in waiting


def test_without_a_launcher_it_just_works(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=""), str(tmp_path)],
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "works\nmade\nagain\n"
    assert list(tmp_path.iterdir()) == []
