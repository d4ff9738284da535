"""``--num-processes``: the same run as under torchrun, with one exit code and one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.commands.launch import is_to_say, processes_to_start
from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.stage import fit
from tests.fit.helpers import assert_same_weights, log_of

REQUIRED: dict[str, Any] = {"data_path": "d", "model_name_or_path": "m", "output_dir": "o"}


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ("1", {}, 1),
        ("3", {}, 3),
        ("1", {"RANK": "0", "WORLD_SIZE": "2"}, 1),
        ("3", {"RANK": "0", "DUET_LAUNCHED": "x"}, 1),
    ],
)
def test_how_many_are_started(
    given: str, environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes_to_start(FitConfig(**REQUIRED, num_processes=given)) == expected


@pytest.mark.parametrize(("gpus", "expected"), [(0, 1), (8, 8)])
def test_auto_is_the_number_of_gpus(
    gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert processes_to_start(FitConfig(**REQUIRED, num_processes="auto")) == expected


@pytest.mark.parametrize("given", ["2", "auto"])
def test_under_a_launcher_it_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="--num-processes"):
        processes_to_start(FitConfig(**REQUIRED, num_processes=given))


def test_the_function_starts_no_processes() -> None:
    with pytest.raises(ConfigError, match="use the command duet fit"):
        fit(FitConfig(**REQUIRED, num_processes="2"))


@pytest.mark.parametrize("given", ["0", "-1", "two", "²", ""])
def test_a_number_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="give 1 or more, or auto"):
        FitConfig(**REQUIRED, num_processes=given)


def test_more_processes_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    flags = ["--data-path", "d", "--model-name-or-path", "m", "--output-dir", "o"]
    assert run(["fit", *flags, "--num-processes", "3"]) == 1
    assert "got: 3, with 2 GPUs" in capsys.readouterr().err


def test_an_error_of_all_processes_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [is_to_say("x"), is_to_say("x")] == [True, True]
    monkeypatch.setenv("DUET_LAUNCHED", str(tmp_path))
    assert [is_to_say("x"), is_to_say("x"), is_to_say("y")] == [True, False, True]


def command(config: FitConfig, output: Path, *more: str) -> list[str]:
    (data,) = config.data_path
    model = config.model_name_or_path
    return [
        *(sys.executable, "-m", "pipeline", "fit", "--data-path", data),
        *("--model-name-or-path", model, "--output-dir", str(output), "--num-processes", "2"),
        *("--train-batch-size", "4", "--max-steps", "6", "--logging-steps", "1", *more),
    ]


@pytest.mark.slow
def test_two_processes_stop_by_a_signal_and_go_on(config: FitConfig, tmp_path: Path) -> None:
    whole = subprocess.run(
        command(config, tmp_path / "whole"), capture_output=True, text=True, check=True
    )
    assert whole.stdout == f"{tmp_path / 'whole'}\n"
    assert "torch/distributed" not in whole.stderr
    output = tmp_path / "stopped"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with subprocess.Popen(
            # What a shell starts in the background ignores SIGINT.
            command(config, output, "--save-strategy", "no"),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("step ") and not any("stopping" in text for text in said):
                    os.kill(process.pid, number)
        assert process.returncode == code, said
        assert "the same command resumes from there" in said[-1]
    subprocess.run(command(config, output, "--save-strategy", "no"), check=True)
    assert log_of(output) == log_of(tmp_path / "whole")
    assert_same_weights(output, tmp_path / "whole")


@pytest.mark.slow
def test_an_error_and_a_kill_have_one_line_and_their_exit_code(
    config: FitConfig, tmp_path: Path
) -> None:
    done = subprocess.run(
        command(
            config,
            tmp_path / "out",
            *("--load-best-model-at-end", "--eval-steps", "2", "--save-steps", "3"),
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")

    with subprocess.Popen(
        command(config, tmp_path / "killed", "--max-steps", "9999"),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("step 1/"):
                os.kill(first_child(process.pid), signal.SIGKILL)
    assert process.returncode == 1
    assert any("killed" in line and "SIGKILL" in line for line in said), said


def first_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return int(children.split()[0])
