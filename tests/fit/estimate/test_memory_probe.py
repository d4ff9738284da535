"""The largest micro-batch is tried first, and nothing of it is left."""

import math
import re
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.checkpoint.train_state import rng_state
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.estimate.memory_probe import (
    SMALLEST,
    MemoryProbe,
    biggest,
    largest_that_fits,
)
from pipeline.fit.flops import ModelFlops
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import MAX_LENGTH, Hooks, assert_same_weights, changed, fit_with, log_of
from tests.fit.training.test_step import OneOfMany, load


@pytest.fixture
def forward_hook() -> Iterator[Callable[[Callable[[torch.nn.Module, Any], object]], None]]:
    """Return what has a function called before the forward pass of each module."""
    handles: list[Any] = []
    yield lambda hook: handles.append(register_module_forward_pre_hook(hook))
    for handle in handles:
        handle.remove()


def out_of_memory_beyond(tokens: int, seen: list[tuple[int, ...]]) -> Callable[..., None]:
    """Return a hook that stands for a device which embeds so many tokens at most."""

    def look(module: torch.nn.Module, args: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings > 100:
            seen.append(tuple(args[0].shape))
            if args[0].numel() > tokens:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    return look


SIZES = SimpleNamespace(
    d_model=8, d_kv=4, d_ff=16, num_heads=2, num_layers=1, num_decoder_layers=1, vocab_size=100
)


def test_the_biggest_are_those_in_some_way() -> None:
    flops = ModelFlops.of(SIZES)
    sizes = [(1, 90, 5), (1, 10, 40), (2, 20, 40), (1, 50, 38), (1, 20, 10)]
    assert biggest([Shape(*size) for size in sizes], flops) == [
        Shape(2, 20, 40),
        Shape(1, 90, 5),
    ]
    assert biggest([Shape(3, 90, 40), Shape(1, 90, 40)], flops) == [Shape(3, 90, 40)]


@pytest.fixture
def model(config: FitConfig, tokenizer: TextTokenizer) -> Any:
    return SummedTokenLoss(build_model(config.model, tokenizer)).train()


def test_nothing_is_left(model: Any) -> None:
    seen = []
    model.model.encoder.register_forward_hook(
        lambda module, args, kwargs, made: seen.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    generators, shapes = rng_state(), [Shape(3, 7, 5), Shape(1, 9, 2)]
    assert MemoryProbe(model, OneOfMany(), token_id=1).too_big(shapes) is None
    assert seen == [SMALLEST[:2], (3, 7), SMALLEST[:2], (1, 9)]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    after = rng_state()
    assert torch.equal(after["cpu"], generators["cpu"])
    assert after["python"] == generators["python"]


def test_gradients_and_the_optimizers_values_are_there_while_it_runs(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, forward_hook: Any
) -> None:
    """What a run keeps beside a micro-batch: four values for each weight, from the second on."""
    held: list[Any] = []
    empty = torch.empty

    def note(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = empty(*args, **kwargs)
        if kwargs.get("dtype") == torch.uint8:
            held.append(weakref.ref(made))
        return made

    seen: list[tuple[int, int, int]] = []

    def look(module: torch.nn.Module, args: Any) -> None:
        if not isinstance(module, SummedTokenLoss):
            return
        weights = list(module.parameters())
        gradients = sum(p.grad.numel() for p in weights if p.grad is not None)
        there = [tensor() for tensor in held]
        reserved = sum(tensor.nbytes for tensor in there if tensor is not None)
        seen.append((sum(weight.numel() for weight in weights), gradients, reserved))

    monkeypatch.setattr(torch, "empty", note)
    forward_hook(look)
    config = changed(config, max_steps=1, train_batch_size=1, per_device_train_batch_size=1)
    fit_with(config, probe_memory=True)
    weights = seen[0][0]
    assert seen == [
        (weights, 0, 0),
        (weights, weights, 8 * weights),
        (weights, 0, 0),  # the first step
    ]


def test_a_resumed_run_reserves_nothing_for_moments_that_are_there(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(config, save_strategy="steps", save_steps=3)
    out = fit(config)
    shutil.rmtree(out / "checkpoint-6")
    sizes: list[int] = []
    empty = torch.empty

    def note(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("dtype") == torch.uint8:
            sizes.append(math.prod(args[0]) if isinstance(args[0], tuple) else args[0])
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", note)
    fit_with(config, probe_memory=True, callback=Hooks(step_begin=lambda step: monkeypatch.undo()))
    assert set(sizes) == {0}


def test_a_run_without_a_step_left_tries_nothing(
    config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was ended after its last checkpoint, and before the trained model was written."""
    config = changed(config, save_strategy="steps", save_steps=6)
    out = fit(config)
    (out / "trainer_state.json").unlink()
    capsys.readouterr()
    fit_with(config, probe_memory=True)
    assert "biggest micro-batch" not in capsys.readouterr().err
    assert (out / "trainer_state.json").is_file()


def test_a_run_is_the_same_with_it(
    config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fit(config)
    assert "largest micro-batch" not in capsys.readouterr().err
    tried = fit_with(changed(config, output_dir=str(tmp_path / "tried")), probe_memory=True)
    assert "note: the largest micro-batch fits: 4 rows of " in capsys.readouterr().err
    assert log_of(tried) == log_of(plain)
    assert_same_weights(tried, plain)


def test_a_run_that_does_not_fit_ends_before_its_first_step(
    config: FitConfig, forward_hook: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    forward_hook(out_of_memory_beyond(2 * MAX_LENGTH, []))
    with pytest.raises(ConfigError, match="out of memory") as caught:
        fit_with(config, probe_memory=True)
    assert caught.value.where == "--per-device-train-batch-size"
    assert caught.value.got.startswith("4, which makes micro-batches of 4 rows of ")
    assert "--train-batch-size 4" in caught.value.do
    assert "step 1" not in capsys.readouterr().err
    fit_with(changed(config, per_device_train_batch_size=2, train_batch_size=4), probe_memory=True)


def test_only_shapes_of_the_runs_own_plan_are_tried(
    config: FitConfig, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of one row of the first three: the longest row of all is none of the run's."""
    fit_with(changed(config, num_data=3, train_batch_size=1, max_steps=3), probe_memory=True)
    encoder, decoder = (side[:3] for side in SupervisedDataset(prepared).lengths)
    lengths = {f"{s} + {t}" for s, t in zip(encoder.tolist(), decoder.tolist(), strict=True)}
    [said] = re.findall(r"micro-batch fits: (.*)", capsys.readouterr().err)
    tried = re.findall(r"1 row of (\d+ \+ \d+) tokens", said)
    assert tried
    assert set(tried) <= lengths


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
def small_device(forward_hook: Any) -> list[tuple[int, ...]]:
    """Stand for a device that holds batches of 99 tokens; return the shapes that it was given."""
    given: list[tuple[int, ...]] = []
    forward_hook(out_of_memory_beyond(99, given))
    return given


def find(model: Any, less: int, longest: Shape) -> int:
    accelerator = Gathering(less)
    return MemoryProbe(model, accelerator, token_id=1).find_batch_size(longest, limit=64)


def test_the_size_is_that_of_the_process_with_least_room(
    still: Path, small_device: list[tuple[int, ...]]
) -> None:
    model = SummedTokenLoss(load(still))
    assert find(model, 1, Shape(2, 10, 4)) == 9 - 1
    assert [shape for shape in small_device if shape[1] == 10][:3] == [(2, 10), (4, 10), (8, 10)]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_row_that_does_not_fit_is_one_line(
    still: Path, small_device: list[tuple[int, ...]]
) -> None:
    with pytest.raises(ConfigError, match="single example") as caught:
        find(SummedTokenLoss(load(still)), 0, Shape(2, 100, 4))
    assert caught.value.got == "100 encoder and 4 decoder tokens"


def test_room_is_kept_for_the_optimizer(still: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SummedTokenLoss(load(still))

    def empty(size: int, **kwargs: Any) -> None:
        assert kwargs["dtype"] == torch.uint8
        if size > 10_000:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", empty)
    for reserved, fits in ((10_000, True), (10_001, False)):
        probe = MemoryProbe(model, OneOfMany(), token_id=1, reserved=lambda size=reserved: size)
        assert probe.fits_in_memory(Shape(1, 3, 3)) == fits
    assert not MemoryProbe(model, OneOfMany(), token_id=1).fits_in_memory(Shape(1, 3, 3), 10_001)


def test_on_a_cpu_it_means_nothing(
    config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = log_of(fit(config))
    capsys.readouterr()
    auto = fit(changed(config, auto_batch_size=True, output_dir=str(tmp_path / "auto")))
    assert "note: --auto-batch-size is ignored: it needs a GPU" in capsys.readouterr().err
    assert log_of(auto) == plain


@pytest.mark.gpu
def test_on_a_gpu_the_rows_of_a_step_stay_and_the_largest_cut_fits(
    config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(changed(config, auto_batch_size=True, per_device_train_batch_size=1, train_batch_size=6))
    said = capsys.readouterr().err
    assert "note: global batch size 6 " in said
    assert "note: --auto-batch-size: micro-batches of at most 6 of the longest examples" in said
