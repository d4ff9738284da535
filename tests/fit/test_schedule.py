"""What happens at which step."""

from typing import Any

import pytest

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.schedule import RunPlan, plan_run
from tests.fit.helpers import changed


def plan(
    config: FitConfig, *, rows: int = 100, evals: int = 10, processes: int = 1, **changes: Any
) -> RunPlan:
    config = changed(config, **{"max_steps": -1, "eval_strategy": None} | changes)
    return plan_run(config.steps, num_rows=rows, eval_rows=evals, processes=processes)


def steps_due(plan: RunPlan, name: str) -> list[int]:
    return [step for step in range(1, plan.total_steps + 1) if plan.due(getattr(plan, name), step)]


def test_rows_per_step_are_a_product(config: FitConfig) -> None:
    made = plan(config, processes=2, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    assert made.global_batch_size == 64
    assert made.global_batch_size == 64
    assert made.rows_source == "= 8 per device x 2 processes x 4 accumulation steps"
    assert (made.steps_per_epoch, made.total_steps) == (2, 6)


def test_rows_per_step_set_directly_do_not_depend_on_the_machine(config: FitConfig) -> None:
    plans = [plan(config, processes=p, train_batch_size=7) for p in (1, 2, 5)]
    assert {made.global_batch_size for made in plans} == {7}
    assert {made.total_steps for made in plans} == {45}
    assert "--train-batch-size" in plans[0].rows_source


@pytest.mark.parametrize(
    ("changes", "total"),
    [
        ({"num_train_epochs": 2}, 50),
        ({"num_train_epochs": 0.5}, 13),
        ({"num_train_epochs": 0.28}, 7),  # 0.28 * 25 is a little more than 7
        ({"num_train_epochs": 0.001}, 1),
        ({"num_train_epochs": 2, "max_steps": 7}, 7),
    ],
)
def test_steps_in_all(config: FitConfig, changes: dict[str, Any], total: int) -> None:
    assert plan(config, per_device_train_batch_size=4, **changes).total_steps == total


def test_shares_of_all_steps_are_rounded_up(config: FitConfig) -> None:
    made = plan(
        config,
        max_steps=10,
        logging_steps=0.25,
        eval_steps=0.35,
        save_steps=0.5,
        save_strategy="steps",
    )
    assert steps_due(made, "logging") == [3, 6, 9, 10]
    assert steps_due(made, "evaluation") == [4, 8, 10]
    assert steps_due(made, "saving") == [5, 10]


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, [10]),
        ({"eval_steps": 4}, [4, 8, 10]),
        ({"eval_strategy": "no", "eval_steps": 4}, []),
        ({"eval_strategy": "steps", "eval_steps": 4}, [4, 8, 10]),
        ({"eval_strategy": "steps", "logging_steps": 3}, [3, 6, 9, 10]),
        ({"eval_strategy": "epoch"}, [4, 8, 10]),
    ],
)
def test_evaluations(config: FitConfig, changes: dict[str, Any], due: list[int]) -> None:
    made = plan(config, rows=16, max_steps=10, **changes)
    assert steps_due(made, "evaluation") == due


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"save_strategy": "no"}, []),
        ({"save_strategy": "epoch"}, [4, 8, 10]),
        ({"save_strategy": "steps", "save_steps": 3}, [3, 6, 9, 10]),
    ],
)
def test_checkpoints(config: FitConfig, changes: dict[str, Any], due: list[int]) -> None:
    assert steps_due(plan(config, rows=16, max_steps=10, **changes), "saving") == due


def test_without_a_split_nothing_is_evaluated_unless_asked_for(config: FitConfig) -> None:
    assert not plan(config, evals=0).evaluation
    assert not plan(config, evals=0, eval_strategy="no", eval_steps=3).evaluation
    for asked in (
        {"eval_strategy": "epoch"},
        {"eval_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 3},
    ):
        with pytest.raises(ConfigError, match="nothing to evaluate on"):
            plan(config, evals=0, **asked)


def test_no_rows_are_an_error(config: FitConfig) -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        plan(config, rows=0)
