"""The biggest micro-batch is tried first, and nothing of it is left."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.checkpoint.rng import rng_state
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.estimate.memory_probe import SMALLEST, biggest, pays_off, try_out
from pipeline.fit.flops import ModelFlops
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from pipeline.fit.training import run
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import assert_same_weights, changed, log_of
from tests.fit.training.test_step import OneOfMany

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
    assert try_out(model, OneOfMany(), shapes, token_id=1) is None
    assert seen == [SMALLEST[:2], (3, 7), (1, 9)]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    after = rng_state()
    assert torch.equal(after["cpu"], generators["cpu"])
    assert after["python"] == generators["python"]


def test_gradients_and_the_optimizers_values_are_there_while_it_runs(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
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

    def look(self: SummedTokenLoss, **batch: torch.Tensor) -> torch.Tensor:
        weights = list(self.parameters())
        gradients = sum(p.grad.numel() for p in weights if p.grad is not None)
        there = [tensor() for tensor in held]
        reserved = sum(tensor.nbytes for tensor in there if tensor is not None)
        seen.append((sum(weight.numel() for weight in weights), gradients, reserved))
        return whole(self, **batch)

    whole = SummedTokenLoss.forward
    monkeypatch.setattr(torch, "empty", note)
    monkeypatch.setattr(SummedTokenLoss, "forward", look)
    monkeypatch.setattr(run, "pays_off", lambda device: True)
    fit(changed(config, max_steps=1, train_batch_size=1, per_device_train_batch_size=1))
    weights = seen[0][0]
    assert seen == [
        (weights, 0, 8 * weights),
        (weights, weights, 8 * weights),
        (weights, 0, 0),  # the first step
    ]


def test_a_run_is_the_same_with_it(
    config: FitConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not pays_off(torch.device("cpu"))
    assert pays_off(torch.device("cuda"))
    plain = fit(config)
    assert "biggest micro-batch" not in capsys.readouterr().err
    monkeypatch.setattr(run, "pays_off", lambda device: True)
    tried = fit(changed(config, output_dir=str(tmp_path / "tried")))
    assert "note: the biggest micro-batch fits, even 4 rows of " in capsys.readouterr().err
    assert log_of(tried) == log_of(plain)
    assert_same_weights(tried, plain)


def test_where_the_longest_rows_at_once_do_not_fit_those_of_the_run_are_tried(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[list[Shape]] = []

    def try_first(_: Any, shapes: list[Shape], spare: int = 0) -> Shape | None:
        tried.append(shapes)
        return shapes[0] if len(tried) == 1 else None

    monkeypatch.setattr(run, "pays_off", lambda device: True)
    monkeypatch.setattr(run.Run, "_try_out", try_first)
    fit(changed(config, max_steps=1))
    assert len(tried) == 2
    assert "note: the biggest micro-batch fits: 4 rows of " in capsys.readouterr().err


def test_a_run_that_does_not_fit_ends_before_its_first_step(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = SummedTokenLoss.forward

    def fail(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(input_ids) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(SummedTokenLoss, "forward", fail)
    monkeypatch.setattr(run, "pays_off", lambda device: True)
    with pytest.raises(ConfigError, match="out of memory") as caught:
        fit(config)
    assert caught.value.where == "--per-device-train-batch-size"
    assert caught.value.got.startswith("4, which makes micro-batches of 4 rows of ")
    assert "--train-batch-size 4" in caught.value.do
    assert "step 1" not in capsys.readouterr().err
    fit(changed(config, per_device_train_batch_size=2, train_batch_size=4))


@pytest.mark.parametrize(("sharding", "shares"), [(None, 1), ("full_shard", 8)])
def test_of_a_model_in_shares_a_process_needs_room_for_its_share_of_the_optimizers_values(
    config: FitConfig, model: Any, monkeypatch: pytest.MonkeyPatch, sharding: Any, shares: int
) -> None:
    sitting = object.__new__(run.Run)
    sitting._model, sitting._wrapped = model.model, model
    sitting._optimizer = torch.optim.AdamW(model.parameters())
    data = SimpleNamespace(tokenizer=SimpleNamespace(eos_id=1))
    accelerator = SimpleNamespace(num_processes=8)
    setup: Any = SimpleNamespace(
        sharding=sharding, accelerator=accelerator, config=config, data=data
    )
    sitting._ctx = setup
    reserved = []
    monkeypatch.setattr(run, "try_out", lambda *_, **options: reserved.append(options))
    sitting._try_out([Shape(1, 1, 1)], spare=5)
    weights = sum(weight.nbytes for weight in model.parameters())
    assert reserved[0]["reserved"] == 2 * weights // shares + 5
