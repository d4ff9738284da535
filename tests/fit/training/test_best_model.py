"""The best checkpoint and early stopping, as the Hugging Face trainer has them."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from pipeline.config import FitConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.stage import fit
from pipeline.fit.training.best_model import BestModelTracker
from pipeline.fit.training.trainer import TrainerCallback
from tests.fit.distributed.test_processes import torchrun
from tests.fit.helpers import Hooks, assert_same_weights, changed, state_of


def track(values: list[float], **settings: Any) -> RunState:
    best, state = BestModelTracker(output=Path("out"), metric="eval_loss", **settings), RunState()
    for state.step, value in enumerate(values, 1):
        best.update(state, {"eval_loss": value})
        if state.stopped_early:
            break
    return state


@pytest.mark.parametrize(
    ("values", "settings", "best", "last"),
    [
        ([3.0, 2.0, 2.5, 1.9], {}, 4, 4),
        ([3.0, 2.0, 2.5, 2.0, 1.0], {"patience": 2}, 2, 4),
        ([3.0, 2.95, 2.9, 1.0], {"patience": 2, "threshold": 0.1}, 3, 3),
        ([1.0, 2.0, 3.0, 2.5], {"greater_is_better": True}, 3, 4),
        ([math.nan, 2.0, math.nan], {}, 2, 3),
    ],
)
def test_the_best_and_the_end(
    values: list[float], settings: dict[str, Any], best: int, last: int
) -> None:
    state = track(values, **settings)
    assert (state.best_step, state.step) == (best, last)
    assert state.best_metric == values[best - 1]


@pytest.fixture
def evaluated(config: FitConfig) -> FitConfig:
    """A run whose rate is so high that an early evaluation is its best."""
    return changed(
        config,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.3,
        load_best_model_at_end=True,
    )


class Stopped(TrainerCallback):
    def on_step_end(self, step: int, result: Any) -> None:
        if step == 5:
            raise MemoryError("the machine is gone")


def test_the_best_checkpoint_stays_and_is_the_trained_model(evaluated: FitConfig) -> None:
    # The largest loss, which is the first: a best one that is not the last.
    config = changed(evaluated, save_total_limit=1, learning_rate=1e-2, greater_is_better=True)
    with pytest.raises(MemoryError):
        fit(config, callback=Stopped())
    out = fit(config)  # which remembers the best
    state = state_of(out)
    losses = {e["step"]: e["eval_loss"] for e in state["log_history"] if "eval_loss" in e}
    best = max(losses, key=lambda step: losses[step])
    assert 1 <= best < 5, "the test wants a best one before the last"
    assert state["best_global_step"] == best
    assert state["best_metric"] == losses[best]
    assert state["best_model_checkpoint"] == str(out / f"checkpoint-{best}")
    assert {path.name for path in out.glob("checkpoint-*")} >= {f"checkpoint-{best}"}
    assert_same_weights(out, out / f"checkpoint-{best}")
    assert f"| {losses[best]:.4f} |" in (out / "README.md").read_text("utf-8")


def test_a_best_checkpoint_that_is_gone_is_one_error(evaluated: FitConfig) -> None:
    """The largest loss is the first, so the best checkpoint is not the last."""

    def delete_best(step: int, _: Any) -> None:
        for folder in Path(evaluated.output_dir).glob("checkpoint-1"):
            if step == 6:
                shutil.rmtree(folder)

    config = changed(evaluated, learning_rate=1e-2, greater_is_better=True)
    with pytest.raises(CheckpointError, match="the best checkpoint is missing"):
        fit(config, callback=Hooks(step_end=delete_best))
    assert not (Path(evaluated.output_dir) / "trainer_state.json").exists()


def test_a_run_that_stopped_early_is_finished(
    evaluated: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(evaluated, early_stopping_patience=2, max_steps=30)
    out = fit(config)
    state = state_of(out)
    assert state["global_step"] < 30
    assert state["best_global_step"] == state["global_step"] - 2
    capsys.readouterr()
    fit(config)
    assert "already finished" in capsys.readouterr().err
    assert state_of(out) == state


@pytest.mark.parametrize(
    "changes",
    [
        {"save_strategy": "no"},
        {"save_steps": 3, "eval_steps": 2},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "no"},
        {"eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": 1},
    ],
)
def test_saves_that_do_not_fall_on_evaluations_are_refused(
    evaluated: FitConfig, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="evaluation"):
        fit(changed(evaluated, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--fsdp=full_shard",)])
def test_two_processes_keep_the_same_best_as_one(
    evaluated: FitConfig, still: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """With the largest loss as the best, which is the first, and an early end."""
    config = changed(
        evaluated,
        model_name_or_path=str(still),
        train_batch_size=4,
        learning_rate=1e-2,
        greater_is_better=True,
        early_stopping_patience=3,
    )
    two = tmp_path / "two"
    asked = ("--load-best-model-at-end", "--greater-is-better", "--early-stopping-patience=3")
    steps = ("--eval-strategy=steps", "--eval-steps=1", "--save-steps=1", "--save-total-limit=1")
    torchrun(changed(config, output_dir=str(two)), 2, *asked, *steps, *flags)
    one = state_of(fit(config))
    state = state_of(two)
    assert (state["global_step"], state["best_global_step"]) == (4, 1)
    assert (one["global_step"], one["best_global_step"]) == (4, 1)
    assert state["best_metric"] == pytest.approx(one["best_metric"], rel=1e-4)
    trained, best = (loaded(folder) for folder in (two, two / "checkpoint-1"))
    assert all(torch.equal(trained[name], best[name]) for name in trained | best)


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that transformers finds in a folder, in one file or in several."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    return dict(model.state_dict())
