"""Trackers: one line where one cannot start, the same run after a resume; ``log.jsonl``."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.stage import fit
from pipeline.fit.training.trainer import TrainerCallback
from tests.fit.helpers import changed, state_of


class FakeRun:
    """What ``wandb.init`` returns, as far as it is used."""

    def __init__(self, log: list[Any], step: int = 0) -> None:
        self.entries, self.step = log, step

    def log(self, values: dict[str, Any], step: int) -> None:
        if "fail" in sys.modules["wandb"].__dict__:
            raise OSError("disk full")
        assert step >= self.step, "W&B drops it"
        self.step = step
        self.entries.append((step, values))

    def finish(self) -> None:
        raise RuntimeError("cannot end")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in the place of wandb that keeps what it is told."""
    module: Any = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")
    module.inits, module.entries = [], []

    def init(**kwargs: Any) -> FakeRun:
        module.inits.append(kwargs)
        return FakeRun(module.entries, module.entries[-1][0] + 1 if module.entries else 0)

    module.init = init
    module.config = SimpleNamespace(update=lambda values, allow_val_change: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return module


def test_a_tracker_that_cannot_start_is_one_line(
    config: FitConfig, wandb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**kwargs: Any) -> None:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    wandb.init = init
    with pytest.raises(ConfigError, match="cannot be started"):
        fit(changed(config, report_to="wandb"))
    args = ["--data-path", config.data_path[0], "--model-name-or-path", config.model_name_or_path]
    args += ["--output-dir", config.output_dir, "--max-steps", "1", "--report-to", "wandb"]
    capsys.readouterr()
    assert run(["fit", *args]) == 1
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: a tracker cannot be started; where: --report-to wandb; ")
    assert "wandb login" in line


class Stopped(TrainerCallback):
    def on_step_end(self, step: int, result: Any) -> None:
        if step == 5:
            raise MemoryError("the machine is gone")


def test_a_resumed_run_keeps_its_trackers_run_and_logs_nothing_twice(
    config: FitConfig, wandb: Any
) -> None:
    config = changed(config, report_to="wandb", save_strategy="steps", save_steps=3)
    with pytest.raises(MemoryError, match="gone"):  # and not what ending the tracker raises
        fit(config, callback=Stopped())
    log = Path(config.output_dir) / "log.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]
    out = fit(config)
    first, second = wandb.inits
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    losses = [step for step, values in wandb.entries if "train/loss" in values]
    assert losses == [1, 2, 3, 4, 5, 6]
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert entries == state_of(out)["log_history"]
    fit(changed(config, output_dir=config.output_dir + "-other"))
    assert wandb.inits[-1]["id"] != first["id"]


def test_sample_answers_are_a_table(config: FitConfig, wandb: Any) -> None:
    wandb.Table = dict
    config = changed(config, eval_strategy="steps", eval_steps=3, eval_samples=2)
    fit(changed(config, report_to="wandb", eval_data_path=(f"other={config.data_path[0]}",)))
    tables = [(step, v["eval/samples"]) for step, v in wandb.entries if "eval/samples" in v]
    assert [step for step, _ in tables] == [3, 6]
    (table, _) = (table for _, table in tables)
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["eval_set"], row["conversation_id"]) for row in rows] == [
        *(("", "c0"), ("", "c4")),
        *(("other", "c0"), ("other", "c4")),
    ]
    assert all(isinstance(row["answer"], str) for row in rows)


def test_a_tracker_that_fails_later_does_not_end_the_run(
    config: FitConfig, wandb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.fail = True
    out = fit(changed(config, report_to="wandb"))
    assert state_of(out)["global_step"] == 6
    assert capsys.readouterr().err.count("wandb failed (disk full); continuing") == 1
