"""An optimizer step is the same however its rows are cut, and what plain transformers gives."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from pipeline.config import FitConfig
from pipeline.errors import ModelError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import StepLoader, micro_batcher_for
from pipeline.fit.distributed.signals import GracefulShutdown
from pipeline.fit.model.fast_paths.attention import share_bias
from pipeline.fit.model.fast_paths.layers import fuse_layers
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.training.step import StepResult, TrainingStep
from tests.fit.helpers import changed

ROWS = np.array([3, 1, 8, 0, 12, 5, 19, 7])


class KeepGradients(torch.optim.SGD):
    """Takes no step, so that the gradients can be looked at."""

    def step(self, closure: Any = None) -> None: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


class OneOfMany:
    """What the loop asks of accelerate, as seen by one process of several that only add up."""

    device = torch.device("cpu")

    def __init__(self, process: int = 0, processes: int = 1, accumulation: int = 1) -> None:
        self.process_index, self.num_processes = process, processes
        self.gradient_accumulation_steps = accumulation
        self.synced: list[bool] = []
        self._sync = True

    @contextlib.contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        self._sync = False
        yield
        self._sync = True

    def backward(self, loss: torch.Tensor) -> None:
        self.synced.append(self._sync)
        (loss / self.gradient_accumulation_steps).backward()

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor

    def clip_grad_norm_(self, parameters: Any, limit: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)


Gradients = dict[str, torch.Tensor]


def load(folder: Path) -> Any:
    with quiet_transformers():
        return AutoModelForSeq2SeqLM.from_pretrained(folder)


def take_step(
    config: FitConfig, accelerator: Any = None, rows: Any = ROWS, **changes: Any
) -> tuple[StepResult, Gradients]:
    """Take a step as a run does."""
    config = changed(config, **{"max_grad_norm": 0.0} | changes)
    model = load(Path(config.model_name_or_path)).train()
    share_bias(model)
    fuse_layers(model)
    result = step_of(config, model, accelerator or OneOfMany())(rows)
    return result, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def step_of(config: FitConfig, model: Any, accelerator: Any) -> Callable[[Any], StepResult]:
    """Return what takes the first step on given rows, and keeps the gradients."""
    dataset = SupervisedDataset(config.data_path[0])
    micro_batcher = micro_batcher_for(
        dataset, model.config, config.per_device_train_batch_size, accelerator.device
    )
    loader = StepLoader(dataset, micro_batcher, model.config.pad_token_id, accelerator)
    optimizer = KeepGradients(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5)
    wrapped, stop = SummedTokenLoss(model), GracefulShutdown()
    step = TrainingStep(
        accelerator=accelerator,
        model=wrapped,
        optimizer=optimizer,
        schedule=schedule,
        dataset=dataset,
        stop=stop,
        max_grad_norm=config.max_grad_norm,
    )
    return lambda rows: step.launch(loader.feed(rows), 1).result()


def by_hand(model_folder: Path, prepared: Path, rows: Any) -> tuple[float, int, Gradients]:
    """One row at a time, unpadded, through the model's own loss."""
    model, dataset = load(model_folder).train(), SupervisedDataset(prepared)
    tokens = sum(len(dataset[int(row)]["labels"]) for row in rows)
    total = 0.0
    for row in rows:
        source, target = dataset[int(row)]["input_ids"][None], dataset[int(row)]["labels"][None]
        summed = model(input_ids=source, labels=target).loss * target.numel()
        (summed / tokens).backward()
        total += float(summed.detach())
    return total, tokens, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found: Gradients, wanted: Gradients) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2e-7, msg=name)


@pytest.fixture
def still_config(config: FitConfig, still: Path) -> FitConfig:
    return changed(config, model_name_or_path=str(still))


@pytest.mark.parametrize("rows_at_once", [8, 4, 3, 1])
def test_loss_and_gradients_are_those_of_plain_transformers(
    still_config: FitConfig, still: Path, prepared: Path, rows_at_once: int
) -> None:
    lengths = SupervisedDataset(prepared).lengths
    assert all(side[ROWS].max() > 4 * side[ROWS].min() for side in lengths)
    total, tokens, gradients = by_hand(still, prepared, ROWS)
    result, found = take_step(still_config, per_device_train_batch_size=rows_at_once)
    assert result.tokens == tokens
    assert result.loss == pytest.approx(total, rel=1e-6)
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()]))
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert_close(found, gradients)


def test_tied_models_have_the_same_gradients_too(
    still_config: FitConfig, tied: Path, prepared: Path
) -> None:
    from tests.fit.helpers import with_config

    folder = Path(still_config.output_dir).with_name("tied-still")
    with_config(tied, folder, dropout_rate=0.0)
    total, _, gradients = by_hand(folder, prepared, ROWS)
    result, found = take_step(
        still_config, model_name_or_path=str(folder), per_device_train_batch_size=3
    )
    assert "lm_head.weight" not in found
    assert result.loss == pytest.approx(total, rel=1e-6)
    assert_close(found, gradients)


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (3, 4), (11, 1)])
def test_the_mean_over_processes_is_the_gradient(
    still_config: FitConfig, still: Path, prepared: Path, processes: int, accumulation: int
) -> None:
    """Eleven processes share eight rows: some have none and add zeros."""
    total, _, gradients = by_hand(still, prepared, ROWS)
    shares = []
    for process in range(processes):
        accelerator = OneOfMany(process, processes, accumulation)
        shares.append(take_step(still_config, accelerator, per_device_train_batch_size=2))
        # Gradients cross between processes once a step, in the last backward pass.
        assert accelerator.synced[-1] and not any(accelerator.synced[:-1])
    mean = {
        name: torch.stack([found[name] for _, found in shares]).mean(dim=0) for name in gradients
    }
    assert sum(result.loss for result, _ in shares) == pytest.approx(total, rel=1e-6)
    assert_close(mean, gradients)


def test_clipping_scales_the_gradient_and_reports_its_norm_before(
    still_config: FitConfig,
) -> None:
    whole, gradients = take_step(still_config)
    result, clipped = take_step(still_config, max_grad_norm=whole.grad_norm / 4)
    assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(clipped[name], gradient / 4, rtol=1e-4, atol=1e-7)


def test_the_rate_is_the_one_the_step_used(still_config: FitConfig) -> None:
    result, _ = take_step(still_config)
    assert result.learning_rate == 0.25  # ConstantLR: half of 0.5 in the first steps


def test_a_loss_that_is_no_number_ends_the_run(still_config: FitConfig, tmp_path: Path) -> None:
    model = load(Path(still_config.model_name_or_path))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="diverged") as caught:
        take_step(still_config, model_name_or_path=str(tmp_path / "broken"))
    assert caught.value.where == "step 1"
