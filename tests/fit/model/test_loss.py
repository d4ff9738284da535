"""The loss of a batch, a chunk of its target positions at a time."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSeq2SeqLM, BartForConditionalGeneration

from pipeline.config import FitConfig
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.loading import build_model, quiet_transformers
from pipeline.fit.model.loss import (
    SummedTokenLoss,
    is_chunked,
    shift_right,
    summed_cross_entropy,
    target_positions,
)
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import tiny_bart


def load(folder: Path) -> Any:
    with quiet_transformers():
        return AutoModelForSeq2SeqLM.from_pretrained(folder)


TEN_ROWS = 10 * 4 * 1000
"""Bytes of a chunk of ten rows of 1,000 logits."""


class LargestTensor(TorchDispatchMode):
    """Notes how large the largest tensor is that any operation makes, and all their shapes."""

    most = 0

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
                self.shapes.add(tuple(tensor.shape))
        return made


def random_case(positions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, 16, generator=generator).requires_grad_()
    weight = torch.randn(1000, 16, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, 1000, (positions,), generator=generator)


@pytest.mark.parametrize("positions", [1, 9, 10, 11, 95])
def test_chunks_give_the_whole(positions: int) -> None:
    hidden, weight, labels = random_case(positions)
    whole = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    wanted = torch.autograd.grad(whole * 0.3, (hidden, weight))
    loss = summed_cross_entropy(hidden, weight, labels, chunk_bytes=TEN_ROWS)
    found = torch.autograd.grad(loss * 0.3, (hidden, weight))
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_chunk_is_larger_than_it_may_be() -> None:
    hidden, weight, labels = random_case(200)
    with LargestTensor() as chunked:
        summed_cross_entropy(hidden, weight, labels, chunk_bytes=TEN_ROWS).backward()
    with LargestTensor() as plain:
        F.cross_entropy(hidden @ weight.T, labels, reduction="sum").backward()
    assert plain.most == 200 * 1000
    assert chunked.most == weight.numel()


def test_a_frozen_matrix_gets_no_gradient() -> None:
    hidden, weight, labels = random_case(5)
    weight.requires_grad_(False)
    summed_cross_entropy(hidden, weight, labels).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_without_gradients_there_is_the_same_loss() -> None:
    hidden, weight, labels = random_case(20)
    with torch.no_grad():
        loss = summed_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    assert float(loss) == float(summed_cross_entropy(hidden, weight, labels).detach())


def test_autocast_computes_in_bfloat16_and_sums_in_float32() -> None:
    hidden, weight, labels = random_case(300)
    exact = summed_cross_entropy(hidden, weight, labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden, weight)
        plain = F.cross_entropy(logits.float(), labels, reduction="sum")
        loss = summed_cross_entropy(hidden, weight, labels)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    assert float(loss.detach()) != float(exact.detach())
    wanted = torch.autograd.grad(plain, (hidden, weight))
    for one, other in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).abs().max()) < 0.01 * float(other.abs().max())


def batch_of(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[5, 6, 1]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.int64),
        "labels": labels,
    }


def test_labels_that_are_all_ignored_give_zero(still: Path) -> None:
    model = load(still)
    loss = SummedTokenLoss(model)(**batch_of(torch.full((1, 2), -100)))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(p.grad.abs().max()) == 0.0 for p in model.parameters())


def test_only_positions_with_a_label_go_through_the_output_matrix(still: Path) -> None:
    model = load(still)
    labels = torch.tensor([[7, -100, 9, 1, -100, -100]])
    known = SummedTokenLoss(model)(**batch_of(labels), targets=torch.tensor([0, 2, 3]))
    with LargestTensor() as made:
        found = SummedTokenLoss(model)(**batch_of(labels))
    rows, width = model.config.vocab_size, model.config.d_model
    logits = {shape for shape in made.shapes if shape[-1:] == (rows,)}
    assert logits - {(width, rows)} == {(3, rows)}  # the other is the matrix itself
    assert torch.equal(known, found)


def test_the_output_layer_is_its_own_again(still: Path) -> None:
    model = load(still)
    batch = batch_of(torch.tensor([[7, 1]]))
    before = model(**batch).logits
    SummedTokenLoss(model)(**batch)
    assert torch.equal(model(**batch).logits, before)
    with pytest.raises(IndexError):
        SummedTokenLoss(model)(**batch | {"input_ids": torch.tensor([[100_000] * 3])})
    assert torch.equal(model(**batch).logits, before)


def test_the_loss_is_float32_where_the_model_is_not(still: Path) -> None:
    model = load(still).to(torch.bfloat16)
    loss = SummedTokenLoss(model)(**batch_of(torch.tensor([[7, 1]])))
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


def test_the_decoder_sees_the_start_then_the_targets(still: Path) -> None:
    labels = torch.tensor([[7, 8, 1], [9, -100, -100]])
    assert torch.equal(shift_right(labels, 0, 0), load(still)._shift_right(labels))
    assert shift_right(labels, 4, 3).tolist() == [[4, 7, 8], [4, 9, 3]]


def test_positions_are_of_the_flattened_labels() -> None:
    assert target_positions(torch.full((2, 2), -100)).tolist() == []
    assert target_positions(torch.tensor([[-100, 5], [0, -100]])).tolist() == [1, 2]


@pytest.mark.parametrize("chunk_bytes", [1, None])
@pytest.mark.parametrize("kind", ["still", "tied", "bart", "unknown"])
def test_smoothed_loss_and_gradients_are_transformers_own(
    config: FitConfig,
    tokenizer: TextTokenizer,
    kind: str,
    chunk_bytes: int | None,
    request: pytest.FixtureRequest,
) -> None:
    """transformers' LabelSmoother takes a mean; here it is a sum. Evaluation is not smoothed."""
    from transformers.trainer_pt_utils import LabelSmoother

    if kind in ("bart", "unknown"):  # of a model that is not known, all logits are made at once
        settings = tiny_bart(200)
        settings.dropout = 0.0
        model: Any = BartForConditionalGeneration(settings)
        model.final_logits_bias.normal_()
        model.config.model_type = kind
    else:
        name = str(request.getfixturevalue(kind))
        model = build_model(dataclasses.replace(config.model, name=name, dropout=0.0), tokenizer)
        assert is_tied(model) == (kind == "tied")
    assert is_chunked(model) == (kind != "unknown")
    ids = torch.randint(3, 150, (3, 9))
    labels = torch.randint(3, 150, (3, 7))
    labels[1, 4:] = -100
    mask = torch.ones_like(ids)
    loss = SummedTokenLoss(model, 0.1, chunk_bytes=chunk_bytes).train()(ids, mask, labels)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    outputs = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
    plain = outputs.loss.detach() * (labels != -100).sum()
    theirs = LabelSmoother(epsilon=0.1)(outputs, labels) * (labels != -100).sum()
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        error = (ours[name] - parameter.grad).norm()
        assert error < 1e-5 * parameter.grad.norm() + 1e-9, name  # those of a key's bias are zero
    evaluated = SummedTokenLoss(model, 0.1).eval()(ids, mask, labels)
    assert evaluated.item() == pytest.approx(plain.item(), rel=1e-5)


def test_dropout_is_that_of_the_setting(config: FitConfig, tokenizer: TextTokenizer) -> None:
    model = build_model(dataclasses.replace(config.model, dropout=0.25), tokenizer)
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    rates |= {m.dropout for m in model.modules() if isinstance(getattr(m, "dropout", 0), float)}
    assert rates == {0.25}
    assert model.config.dropout_rate == 0.25
