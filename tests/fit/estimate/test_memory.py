"""What training takes is what torch's own optimizers keep, and about what the layers do."""

import dataclasses
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSeq2SeqLM, T5Config

from pipeline.config import FitConfig
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.estimate.memory import (
    activation_bytes,
    loss_bytes,
    newton_schulz_bytes,
    optimizer_bytes,
    training_memory,
)
from pipeline.fit.estimate.memory_probe import full_batch
from pipeline.fit.flops import FLAN_T5_BASE, ModelFlops
from pipeline.fit.model.fast_paths.attention import share_bias
from pipeline.fit.model.fast_paths.layers import checkpoint_activations, fuse_layers
from pipeline.fit.model.loss import GPU_CHUNK, SummedTokenLoss
from pipeline.fit.training.optim import make_optimizer
from tests.fit.helpers import changed
from tests.fit.training.test_step import load


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


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "adafactor", "muon"])
def test_an_optimizer_keeps_that_much(config: FitConfig, still: Path, optim: Any) -> None:
    config, model = changed(config, optim=optim), load(still)
    optimizer = make_optimizer(model, config.optimizer)
    SummedTokenLoss(model)(**full_batch(Shape(1, 4, 3), 5, torch.device("cpu"))).backward()
    optimizer.step()
    kept = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim()
        if not name.startswith("qmap")  # a table of 256 values, which all weights share
    ]
    assert optimizer_bytes(model, optim) == sum(value.nbytes for value in kept)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, and the most of them at one time."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._users: Counter[int] = Counter()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and all(result is not each for each in args):
            storage = result.untyped_storage()
            address = storage.data_ptr()
            self._sizes[address] = storage.nbytes()
            self._users[address] += 1  # a view is one more of the same
            weakref.finalize(result, self._freed, address)
            self.most = max(self.most, sum(self._sizes.values()))
        return result

    def _freed(self, address: int) -> None:
        self._users[address] -= 1
        if not self._users[address]:
            del self._sizes[address]


def test_muons_step_takes_that_much_beside_its_state(config: FitConfig, still: Path) -> None:
    config, model = changed(config, optim="muon"), load(still)
    optimizer = make_optimizer(model, config.optimizer)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    with PeakMemory() as peak:
        optimizer.step()
    assert peak.most == pytest.approx(newton_schulz_bytes(model), rel=0.01)
    memory = training_memory(model, config.model, "muon", Shape(1, 4, 3))
    assert memory.update == newton_schulz_bytes(model)
    huge = dataclasses.replace(memory, update=memory.total)
    kept = memory.parameters + memory.gradients + memory.optimizer
    assert memory.total == kept + memory.activations + memory.loss
    assert huge.total == kept + memory.total, "activations and loss are gone by then"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", [Shape(8, 24, 16), Shape(16, 8, 32)])
@pytest.mark.parametrize("kind", ["gated-gelu", "relu"])
def test_activations_are_about_what_the_layers_keep(
    kind: str, shape: Shape, checkpointing: bool
) -> None:
    model = model_of(feed_forward_proj=kind)
    if checkpointing:
        checkpoint_activations(model)
    share_bias(model)
    fuse_layers(model)
    sizes = ModelFlops.of(model.config)
    estimate = activation_bytes(sizes, shape, checkpointing=checkpointing)
    measured = kept_bytes(model, shape)
    if checkpointing:  # a layer that is worked out again comes on top
        assert measured < estimate < 0.6 * activation_bytes(sizes, shape)
    else:
        assert estimate == pytest.approx(measured - score_bytes(sizes, shape), rel=0.1)


def kept_bytes(model: Any, shape: Shape) -> int:
    """Return what autograd keeps of a micro-batch, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SummedTokenLoss(model)(**full_batch(shape, 5, torch.device("cpu")))
    return sum(kept[address].nbytes() for address in kept.keys() - weights)


def score_bytes(sizes: ModelFlops, shape: Shape) -> int:
    """Return what attention keeps on a CPU: a weight, and whether it was dropped."""
    encoder, decoder = sizes.encoder, sizes.decoder
    scores = encoder.layers * encoder.heads * shape.encoder**2
    scores += decoder.layers * decoder.heads * shape.decoder * (shape.encoder + shape.decoder)
    return 5 * shape.rows * scores


def test_the_loss_takes_chunks_of_logits_and_the_gradient_of_its_matrix() -> None:
    sizes = ModelFlops.of(FLAN_T5_BASE)
    shape = Shape(8, 1, 2048)
    logits, matrix = 4 * 8 * 2048 * 32_128, 4 * 768 * 32_128
    hidden = 4 * 8 * 2048 * 768
    assert loss_bytes(sizes, shape, chunked=True) == 2 * GPU_CHUNK + matrix + 2 * hidden
    assert loss_bytes(sizes, shape, chunked=False) == 3 * logits
    few = loss_bytes(sizes, Shape(1, 1, 10), chunked=True)
    assert few == 2 * 4 * 10 * 32_128 + matrix + 2 * 4 * 10 * 768


def test_bfloat16_keeps_less_and_copies_the_weights(config: FitConfig) -> None:
    model, shape = model_of(), Shape(2, 64, 64)
    full = training_memory(model, config.model, config.optim, shape)
    half = training_memory(model, changed(config, bf16=True).model, config.optim, shape)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (full.parameters, full.gradients, full.optimizer) == (
        4 * weights,
        4 * weights,
        8 * weights,
    )
    matrices = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    copied = 2 * (sum(matrices) - model.lm_head.weight.numel())
    assert (half.parameters, half.gradients) == (4 * weights + copied, 4 * weights)
    layers = model.config.num_layers + model.config.num_decoder_layers
    recomputed = changed(config, bf16=True, gradient_checkpointing=True)
    one_layer = training_memory(model, recomputed.model, config.optim, shape).parameters
    assert one_layer == 4 * weights + copied // layers
    assert half.activations < 0.8 * full.activations
    assert full.total == 16 * weights + full.activations + full.loss
