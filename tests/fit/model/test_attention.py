"""Attention with one bias a stack: what it adds up to, and what is no longer made."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForSeq2SeqLM

from pipeline.fit.model.fast_paths import attention
from pipeline.fit.model.fast_paths.attention import Bias, attend, share_bias
from pipeline.fit.model.loading import quiet_transformers


@pytest.fixture
def model(still: Path) -> Any:
    with quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_pretrained(still).train()
    assert share_bias(model)
    return model


class Called(TorchFunctionMode):
    """Notes which of torch's functions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.add(func)
        return func(*args, **(kwargs or {}))


def inputs(rows: int = 3, encoder: int = 9, decoder: int = 5) -> dict[str, torch.Tensor]:
    mask = torch.ones(rows, encoder, dtype=torch.int64)
    mask[0, 6:] = 0
    return {
        "input_ids": torch.randint(5, 100, (rows, encoder)),
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(5, 100, (rows, decoder)),
    }


@pytest.mark.parametrize("trains", [True, False])
def test_the_scale_is_that_of_the_model(trains: bool) -> None:
    """In training, and by the fused kernel, which a GPU takes in any case."""
    query, key, value = (torch.randn(2, 3, length, 8) for length in (4, 6, 6))
    bias = torch.randn(1, 3, 4, 6)
    with torch.set_grad_enabled(trains):
        found, weights = attend(
            torch.nn.Identity(), query, key, value, None, position_bias=Bias(bias), scaling=0.5
        )
    wanted = F.softmax(0.5 * query @ key.transpose(2, 3) + bias, dim=-1) @ value
    assert weights is None
    torch.testing.assert_close(found, wanted.transpose(1, 2))


def test_the_fused_kernel_gives_the_gradients_too(
    model: Any, still: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with quiet_transformers():
        plain = AutoModelForSeq2SeqLM.from_pretrained(still).train()
    given, called = inputs(), Called()
    with called:
        logits = model(**given, use_cache=False).logits
    assert F.scaled_dot_product_attention in called.functions
    for found in (logits, plain(**given, use_cache=False).logits):
        found.square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert float((one.grad - other.grad).abs().max()) < 1e-5 * float(other.grad.abs().max())


def test_a_stack_has_one_bias_and_cross_attention_no_table_of_zeros(model: Any) -> None:
    seen: dict[int, torch.Tensor] = {}
    shapes: dict[str, set[tuple[int, ...]]] = {"encoder": set(), "decoder": set(), "cross": set()}

    def note(module: Any, args: Any, given: dict[str, Any]) -> None:
        joined = given["position_bias"].joined
        seen[id(joined)] = joined  # kept, so that no id comes twice
        side = "decoder" if module.is_causal else "encoder" if not module.is_decoder else "cross"
        shapes[side].add(tuple(joined.shape))

    for layer in model.modules():
        if type(layer).__name__ == "T5Attention":
            layer.register_forward_pre_hook(note, with_kwargs=True)
    model(**inputs(), use_cache=False)
    assert model.config.num_layers == 2
    assert len(seen) == 3
    heads = model.config.num_heads
    assert shapes == {
        "encoder": {(3, heads, 9, 9)},
        "decoder": {(1, heads, 5, 5)},
        "cross": {(3, 1, 1, 9)},
    }


def test_without_a_mask_nothing_is_masked(model: Any, still: Path) -> None:
    with quiet_transformers():
        plain = AutoModelForSeq2SeqLM.from_pretrained(still)
    given = inputs()
    del given["attention_mask"]
    torch.testing.assert_close(
        model(**given, use_cache=False).logits, plain(**given, use_cache=False).logits
    )


def test_a_bias_has_the_type_of_what_it_is_added_to(model: Any) -> None:
    layer = model.encoder.block[0].layer[0].SelfAttention
    hidden = torch.zeros(1, 4, 32)
    assert attention.bias_of(layer, hidden, hidden, None).joined.dtype == torch.float32
    mask = torch.tensor([[[[True, True, False, True]]]])
    bias, position = attention.bias_of(layer, hidden.bfloat16(), hidden, mask)
    assert position is not None and position.dtype == torch.float32
    assert not bias.requires_grad
    assert bias.dtype == torch.bfloat16
    assert bias.is_contiguous()
    assert bool((bias[..., 2] == torch.finfo(torch.bfloat16).min).all())
    assert bool((bias[..., :2].abs() < 100).all())


@pytest.mark.parametrize("kernel", ["cpu", "fused"])
def test_a_layer_hands_back_a_gradient_without_rows_in_float32(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: kernel == "fused")
    rows, position = 64, torch.randn(1, 2, 3, 4).requires_grad_()
    query, key, value = (torch.randn(rows, 2, length, 8).bfloat16() for length in (3, 4, 4))
    joined = position.detach().bfloat16().expand(rows, 2, 3, 4).contiguous()
    found, _ = attend(
        torch.nn.Identity(), query, key, value, None, position_bias=Bias(joined, position)
    )
    found.float().square().sum().backward()
    exact = position.detach().bfloat16().float().requires_grad_()
    scores = query.float() @ key.float().transpose(2, 3) + exact
    (scores.softmax(-1) @ value.float()).square().sum().backward()
    assert position.grad is not None and exact.grad is not None
    assert position.grad.dtype == torch.float32
    assert position.grad.shape == (1, 2, 3, 4)
    torch.testing.assert_close(position.grad, exact.grad, rtol=0.02, atol=0.2)
    rounded = position.grad.bfloat16().float()
    assert not torch.equal(position.grad, rounded)  # it was never in bfloat16


def test_what_is_saved_knows_nothing_of_it(model: Any, still: Path, tmp_path: Path) -> None:
    with quiet_transformers():
        plain = AutoModelForSeq2SeqLM.from_pretrained(still)
        for name, each in (("plain", plain), ("shared", model)):
            each.save_pretrained(tmp_path / name)
        saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "shared").eval()
    first, second = ((tmp_path / name / "config.json").read_text() for name in ("plain", "shared"))
    assert first == second
    assert saved.config._attn_implementation == plain.config._attn_implementation == "sdpa"
    given = torch.tensor([[5, 9, 1]])
    wanted = plain.eval().generate(given, max_new_tokens=4)
    assert torch.equal(saved.generate(given, max_new_tokens=4), wanted)


def test_it_is_not_made_for_a_cache(model: Any) -> None:
    with pytest.raises(AssertionError, match="no cache"):
        model(**inputs(), use_cache=True)
