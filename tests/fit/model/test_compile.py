"""Compiled layers are few graphs, whatever lengths come; padding to buckets adds nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.model.fast_paths.attention import share_bias
from pipeline.fit.model.fast_paths.compile import BUCKET, compile_layers
from pipeline.fit.model.fast_paths.layers import fuse_layers
from pipeline.fit.model.loading import build_model, quiet_transformers
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import NOT_A_LEAF, changed, fit_with, pad_to_multiple


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class CountGraphs:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        run: Callable[..., Any] = graph.forward
        return run


def batch(rows: int, encoder: int, decoder: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(rows, encoder, dtype=torch.int64)
    mask[0, encoder // 2 :] = 0
    return {
        "input_ids": torch.full((rows, encoder), 7),
        "attention_mask": mask,
        "labels": torch.full((rows, decoder), 9),
    }


@pytest.mark.slow
@NOT_A_LEAF
def test_no_more_graphs_than_kinds_of_layers(still: Path) -> None:
    """The first layer and the others, encoder and decoder; once for one row, once for more."""
    with quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_pretrained(still).train()
    share_bias(model)
    fuse_layers(model)
    counter = CountGraphs()
    compile_layers(model, counter)  # type: ignore[arg-type]
    with_loss = SummedTokenLoss(model)
    random = np.random.default_rng(0)
    # As many rows as heads, a side as long as the model is wide, both sides the same: no special.
    shapes = [(4, 32, 32), *(tuple(map(int, random.integers(2, 70, 3))) for _ in range(30))]
    for shape in shapes:
        with_loss(**pad_to_multiple(batch(*shape), 0, BUCKET)).backward()
    assert len(set(shapes)) == 31
    assert counter.graphs == 4
    for encoder, decoder in ((20, 30), (50, 9), (33, 60)):
        with_loss(**pad_to_multiple(batch(1, encoder, decoder), 0, BUCKET)).backward()
    assert counter.graphs <= 8
    model.eval()
    with torch.no_grad():
        for shape in shapes[:10]:
            with_loss(**pad_to_multiple(batch(*shape), 0, BUCKET))
    assert counter.graphs <= 12


@pytest.mark.slow
@NOT_A_LEAF
def test_layers_with_an_adapter_are_as_few_and_compute_the_same(
    config: FitConfig, still: Path, tokenizer: TextTokenizer
) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    config = changed(config, model_name_or_path=str(still), lora_r=4, lora_dropout=0.0)
    model = build_model(config.model, tokenizer).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():  # B is zero at first, and so is A's gradient
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    counter, found = CountGraphs(), []
    for compiled in (False, True):
        if compiled:
            compile_layers(model, counter)  # type: ignore[arg-type]
        loss = SummedTokenLoss(model)(**pad_to_multiple(batch(4, 20, 30), 0, BUCKET))
        model.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in trained.values())])
    assert counter.graphs == 4
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_lengths_are_multiples_and_few() -> None:
    lengths = {
        (padded["input_ids"].shape[1], padded["labels"].shape[1])
        for encoder in range(1, 65, 3)
        for decoder in range(1, 65, 3)
        for padded in [pad_to_multiple(batch(2, encoder, decoder), 0, BUCKET)]
    }
    assert lengths == {(s, t) for s in range(BUCKET, 65, BUCKET) for t in range(BUCKET, 65, BUCKET)}


def test_a_length_that_is_a_multiple_stays() -> None:
    before = batch(2, 2 * BUCKET, BUCKET)
    after = pad_to_multiple(before, 0, BUCKET)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@NOT_A_LEAF
def test_what_the_compiler_cannot_do_is_one_line(config: FitConfig) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no C++ compiler here\nand a page more")

    with pytest.raises(ConfigError, match="cannot be compiled") as caught:
        fit_with(changed(config, torch_compile=True), compile_backend=refuse)
    assert caught.value.where == "--torch-compile"
    assert "no C++ compiler here" in caught.value.got
