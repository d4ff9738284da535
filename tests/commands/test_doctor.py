"""``duet doctor``: whatever is broken is a line of its table, and never an end of it."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from pipeline.cli import run
from pipeline.commands import doctor
from pipeline.commands.probe import try_import

ROOT = Path(__file__).resolve().parents[2]
BROKEN = {
    "fine": "",
    "raises": "raise RuntimeError('no driver\\nmore')",
    "loud": "print('hello'); import sys; sys.stderr.write('hello')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "import os; os._exit(3)",
    "quits": "raise SystemExit(1)",
    "last": "",
}


def test_a_broken_package_is_named_and_the_others_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    found = doctor.probe([*BROKEN, "not_there"])
    assert {name: each["error"] for name, each in found.items()} == {
        "fine": None,
        "raises": "RuntimeError: no driver",
        "loud": None,
        "killed": "ends the process that imports it (SIGSEGV)",
        "exits": "ends the process that imports it (exit code 3)",
        "quits": "SystemExit: 1",
        "last": None,
        "not_there": "ModuleNotFoundError: No module named 'not_there'",
    }


def test_a_package_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(doctor, "_SECONDS", 1.0)
    assert doctor.probe(["sleeps"])["sleeps"]["error"] == "hangs when it is imported"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is broken, PyArrow too old and peft not there; nothing is imported for it."""
    versions = {"pyarrow": "9.0", "peft": None}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "999.0"))
    broken = {"torch": {"name": "torch", "error": "OSError: libcudart.so: cannot open"}}
    monkeypatch.setattr(doctor, "probe", lambda modules: broken)


@pytest.mark.usefixtures("found")
def test_the_table_names_each_problem_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "problem: torch broken, OSError: libcudart.so: cannot open: pip install" in text
    assert 'problem: pyarrow too old: pip install "pyarrow>=' in text
    assert 'pip install "duet-t5[lora]"' in text
    assert "torch cannot be imported" in text
    assert "offline: HF_HUB_OFFLINE is set" in text


@pytest.mark.usefixtures("found")
def test_json_is_for_bug_reports_and_holds_no_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    report: dict[str, Any] = json.loads(text)
    assert report["hub"]["token"] is True
    assert "hf_secret" not in text
    assert str(Path.home()) + "/" not in text
    assert report["extras"]["lora"]["missing"] == ["peft"]
    assert report["packages"]["torch"]["problem"].startswith("broken")


def test_each_extra_has_a_use_and_a_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert doctor.EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev", "docs"}
    names = {Requirement(text).name for text in project["dependencies"]}
    assert {"torch", "transformers", "pyyaml"} <= names


def test_of_torch_the_devices_are_told() -> None:
    cpu = try_import("torch")["devices"][0]
    assert cpu["device"] == "cpu"
    assert "math" in cpu["attention"]
    assert cpu["cores"] >= 1
