"""The largest size that fits is found, and what the optimizer needs is kept free."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.estimate.batch_size import find_batch_size, largest_that_fits
from pipeline.fit.estimate.memory_probe import SMALLEST, try_out
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from tests.fit.helpers import changed, log_of
from tests.fit.training.test_step import OneOfMany, load


@given(most=st.integers(0, 300), first=st.integers(1, 300), limit=st.integers(1, 300))
def test_the_largest_that_fits(most: int, first: int, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= most

    assert largest_that_fits(fits, first=first, limit=limit) == min(most, limit)
    assert all(1 <= size <= limit for size in tried)
    assert len(tried) == len(set(tried)) <= 18


class Gathering(OneOfMany):
    """One of two processes, the other of which found room for ``less`` rows less."""

    def __init__(self, less: int) -> None:
        super().__init__()
        self._less = less

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor - self._less])


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Stand for a device that holds batches of 99 tokens; return the shapes that it was given."""
    given: list[tuple[int, ...]] = []
    real = SummedTokenLoss.forward

    def forward(model: SummedTokenLoss, **batch: torch.Tensor) -> torch.Tensor:
        given.append(tuple(batch["input_ids"].shape))
        if batch["input_ids"].numel() > 99:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(model, **batch)

    monkeypatch.setattr(SummedTokenLoss, "forward", forward)
    return given


def find(model: Any, less: int, longest: Shape) -> int:
    accelerator = Gathering(less)
    return find_batch_size(
        lambda shape: try_out(model, accelerator, [shape], token_id=1) is None,
        accelerator,
        longest=longest,
        limit=64,
    )


def test_the_size_is_that_of_the_process_with_least_room(
    still: Path, small_device: list[tuple[int, ...]]
) -> None:
    model = SummedTokenLoss(load(still))
    assert find(model, 1, Shape(2, 10, 4)) == 9 - 1
    assert [shape for shape in small_device if shape != SMALLEST[:2]][:3] == [
        (2, 10),
        (4, 10),
        (8, 10),
    ]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_row_that_does_not_fit_is_one_line(
    still: Path, small_device: list[tuple[int, ...]]
) -> None:
    with pytest.raises(ConfigError, match="single row") as caught:
        find(SummedTokenLoss(load(still)), 0, Shape(2, 100, 4))
    assert caught.value.got == "100 encoder and 4 decoder tokens"


def test_room_is_kept_for_the_optimizer(still: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SummedTokenLoss(load(still))

    def empty(size: int, **kwargs: Any) -> None:
        assert kwargs["dtype"] == torch.uint8
        if size > 10_000:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", empty)
    shapes = [Shape(1, 3, 3)]
    assert try_out(model, OneOfMany(), shapes, token_id=1, reserved=10_000) is None
    assert try_out(model, OneOfMany(), shapes, token_id=1, reserved=10_001) == SMALLEST


def test_on_a_cpu_it_means_nothing(
    config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = log_of(fit(config))
    capsys.readouterr()
    auto = fit(changed(config, auto_batch_size=True, output_dir=str(tmp_path / "auto")))
    assert (
        "note: --auto-batch-size means nothing on this device; ignored" in capsys.readouterr().err
    )
    assert log_of(auto) == plain


@pytest.mark.gpu
def test_on_a_gpu_the_rows_of_a_step_stay_and_the_largest_cut_fits(
    config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(changed(config, auto_batch_size=True, per_device_train_batch_size=1, train_batch_size=6))
    said = capsys.readouterr().err
    assert "note: rows per step 6 " in said
    assert "note: --auto-batch-size: 6 rows of full length at once" in said
