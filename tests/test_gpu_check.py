"""The command for a GPU is ready: its small form runs here, and writes its page."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu_check import SECTIONS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_small_form_writes_a_page_without_a_failure(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    command = [sys.executable, "scripts/gpu_check.py", "--tiny", "--output", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    text = page.read_text("utf-8")
    assert "Failed" not in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert "Stopped with exit code 143." in text
    assert "to the bit" in text
    assert "| 24 | 0.1 | " in text
    assert list(tmp_path.iterdir()) == [page]
