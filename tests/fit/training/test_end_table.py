"""The table that a run ends with says what its log says, and a command that works."""

from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.fit.checkpoint.train_state import RunState, Sums
from pipeline.fit.schedule import RunPlan, Schedule
from pipeline.fit.stage import fit
from pipeline.fit.training.logging import end_table
from tests.fit.helpers import changed, log_of


def test_a_run_ends_with_what_it_took_and_reached(
    config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(config, eval_steps=3, eval_strategy="steps", save_strategy="steps")
    out = fit(config)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    table = {line[0]: line[1:] for line in lines[-6:]}
    log = log_of(out)
    assert table["steps"][0] == "6"
    losses = [entry["loss"] for entry in log if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert table["loss"][0] == f"{losses[-1]:.4g}"
    assert table["eval_loss"][0] == f"{evaluated[-1]:.4g}"
    assert table["trained"] == ["model", str(out)]
    assert table["talk"] == ["to", "it", "duet", "chat", str(out)]
    fit(config)
    assert "talk to it" not in capsys.readouterr().err  # nothing was trained


def test_the_best_checkpoint_an_early_stop_and_named_sets_are_told() -> None:
    state = RunState(log=[{"loss": 2.0, "step": 4}, {"eval_code_loss": 1.5, "step": 4}])
    state.step, state.rows_seen, state.seconds, state.stopped_early = 4, 40, 90.0, True
    state.whole = Sums()
    state.whole.add(20.0, 10)
    plan = RunPlan(
        global_batch_size=10,
        rows_source="",
        steps_per_epoch=8,
        total_steps=9,
        logging=Schedule(),
        evaluation=Schedule(),
        saving=Schedule(),
    )
    text = "\n".join(end_table(state, plan, Path("a b"), best_step=2))
    for part in ("of 9: stopped early", "1 min 30 s", "eval_code_loss", "checkpoint-2", "'a b'"):
        assert part in text
