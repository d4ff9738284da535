"""What training takes is what torch's own optimizers keep, and about what stock layers do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config

from pipeline.config import FitConfig
from pipeline.fit.flops import ModelFlops
from pipeline.fit.memory import activation_bytes, optimizer_bytes, training_memory
from pipeline.fit.micro_batches import Shape
from pipeline.fit.model import checkpoint_activations
from pipeline.fit.optim import make_optimizer
from tests.fit.helpers import changed
from tests.fit.test_step import load


def model_of(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "vocab_size": 256,
        "d_model": 96,
        "d_kv": 24,
        "num_heads": 4,
        "d_ff": 256,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    }
    auto: Any = AutoModelForSeq2SeqLM
    return auto.from_config(T5Config(**values | changes)).train()


def batch(shape: Shape) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.full((shape.rows, shape.encoder), 5),
        "labels": torch.full((shape.rows, shape.decoder), 5),
    }


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_an_optimizer_keeps_that_much(config: FitConfig, still: Path, optim: Any) -> None:
    config, model = changed(config, optim=optim), load(still)
    optimizer = make_optimizer(model, config)
    model(**batch(Shape(1, 4, 3))).loss.backward()
    optimizer.step()
    kept = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    assert optimizer_bytes(model, config) == sum(value.nbytes for value in kept)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", [Shape(8, 24, 16), Shape(16, 8, 32)])
def test_activations_are_about_what_stock_layers_keep(
    config: FitConfig, shape: Shape, checkpointing: bool
) -> None:
    """Short rows, where a CPU's attention, which keeps its scores, is a small part of it."""
    config = changed(config, gradient_checkpointing=checkpointing)
    model = model_of()
    if checkpointing:
        checkpoint_activations(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch(shape))
    measured = sum(kept[address].nbytes() for address in kept.keys() - weights)
    estimate = activation_bytes(ModelFlops.of(model.config), config, shape)
    if checkpointing:  # a layer that is worked out again comes on top
        assert (
            measured
            < estimate
            < 0.6
            * activation_bytes(
                ModelFlops.of(model.config), changed(config, gradient_checkpointing=False), shape
            )
        )
    else:
        assert estimate == pytest.approx(measured, rel=0.2)


def test_bfloat16_keeps_less_and_copies_the_weights(config: FitConfig) -> None:
    model, shape = model_of(), Shape(2, 64, 64)
    full = training_memory(model, config, shape)
    half = training_memory(model, changed(config, bf16=True), shape)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (full.parameters, full.gradients, full.optimizer) == (
        4 * weights,
        4 * weights,
        8 * weights,
    )
    assert (half.parameters, half.gradients) == (6 * weights, 4 * weights)
    assert half.activations < 0.8 * full.activations
    assert full.total == 16 * weights + full.activations
