"""The operations are those that torch counts in a model's own forward pass."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config

from pipeline.errors import ModelError
from pipeline.fit.flops import TRAINING, ModelFlops

SIZES = {"d_model": 24, "d_ff": 40, "d_kv": 8, "num_heads": 2, "vocab_size": 96}
T5 = {"num_layers": 3, "num_decoder_layers": 2, "decoder_start_token_id": 0} | SIZES
BART = {
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "config",
    [
        T5Config(**T5, feed_forward_proj="gated-gelu"),
        T5Config(**T5, feed_forward_proj="relu"),
        BartConfig(**BART),
    ],
)
@pytest.mark.parametrize(("rows", "source", "target"), [(1, 17, 9), (3, 8, 40)])
def test_they_are_those_that_torch_counts(config: Any, rows: int, source: int, target: int) -> None:
    auto: Any = AutoModelForSeq2SeqLM
    model = auto.from_config(config, attn_implementation="eager").train()
    ids = torch.full((rows, source), 5)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, decoder_input_ids=torch.full((rows, target), 5)).logits
    assert counter.get_total_flops() == rows * ModelFlops.of(config)(source, target)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    total = counter.get_total_flops() + backward.get_total_flops()
    assert total == TRAINING * rows * ModelFlops.of(config)(source, target)


def test_numbers_and_arrays_give_the_same() -> None:
    import numpy as np

    flops = ModelFlops.of(T5Config(**T5))
    encoder, decoder = np.array([3, 2048]), np.array([2, 700])
    assert flops(encoder, decoder).tolist() == [flops(3, 2), flops(2048, 700)]
    # More than 2**63 of a large model's longest batches: in floating point all along.
    assert flops(10**6, 10**6) * 10**6 > 2**63


def test_a_config_without_sizes_is_refused() -> None:
    with pytest.raises(ModelError, match="does not name its sizes"):
        ModelFlops.of(object())
