"""Under autocast an input of several matrices is cast once, and nothing is cast to and fro."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config, T5ForConditionalGeneration

from pipeline.config.views import LoraSettings
from pipeline.fit.model.fast_paths.attention import share_bias
from pipeline.fit.model.fast_paths.layers import fuse_layers
from pipeline.fit.model.lora import add_adapter

ROWS, LENGTH, WIDTH = 2, 10, 24


class CountCasts(TorchDispatchMode):
    """Counts casts of [ROWS, LENGTH, ...]: those of weights stay out."""

    def __init__(self) -> None:
        super().__init__()
        self.to: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cast = func is torch.ops.aten._to_copy.default and "dtype" in kwargs
        if cast and args[0].shape[:2] == (ROWS, LENGTH) and args[0].dim() == 3:
            self.to[kwargs["dtype"]] += 1
        return func(*args, **(kwargs or {}))


def casts_of(encoder: int, decoder: int, kind: str, *changes: Any) -> Counter[torch.dtype]:
    """Return the casts of a forward and a backward pass."""
    config = T5Config(
        vocab_size=64,
        d_model=WIDTH,
        d_kv=6,
        num_heads=4,
        d_ff=40,
        num_layers=encoder,
        num_decoder_layers=decoder,
        feed_forward_proj=kind,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).train()
    for change in changes:
        change(model)
    ids = torch.randint(5, 60, (ROWS, LENGTH))
    with CountCasts() as counted, torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids, use_cache=False).logits.sum().backward()
    return counted.to


def of_a_layer(side: str, kind: str, *changes: Any) -> dict[torch.dtype, int]:
    """Return the casts of one layer: those of two, less those of one."""
    sizes = {"encoder": ((1, 1), (2, 1)), "decoder": ((1, 1), (1, 2))}[side]
    less, more = (casts_of(*size, kind, *changes) for size in sizes)
    return {dtype: more[dtype] - less[dtype] for dtype in (torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_an_encoder_layer(kind: str) -> None:
    """To bfloat16: both norms' outputs, and the gradients of what both halves add; and back."""
    found = of_a_layer("encoder", kind, share_bias, fuse_layers)
    assert found == {torch.bfloat16: 4, torch.float32: 2}
    matrices = 5 if kind == "gated-gelu" else 4  # each casts its input, and ``wo`` to and fro
    plain = of_a_layer("encoder", kind)
    assert plain[torch.bfloat16] >= 4 + matrices - 2 + 1
    assert plain[torch.float32] >= 2 + matrices - 2 + 1


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_an_adapted_layer_has_the_casts_of_a_plain_one(kind: str) -> None:
    """PEFT's layers would each cast their input to float32, and autocast back."""

    def adapt(model: Any) -> None:
        add_adapter(model, LoraSettings(r=4), (), name="t5")

    for side in ("encoder", "decoder"):
        found = of_a_layer(side, kind, share_bias, fuse_layers, adapt)
        assert found == of_a_layer(side, kind, share_bias, fuse_layers)


def test_a_decoder_layer() -> None:
    """The same of three norms, and what the encoder gives for keys and values."""
    found = of_a_layer("decoder", "gated-gelu", share_bias, fuse_layers)
    assert found == {torch.bfloat16: 7, torch.float32: 4}
