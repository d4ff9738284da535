"""Attention in chunks is attention: values, gradients, and what dropout does."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.fit.model.fast_paths import cpu_attention

Leaves = tuple[torch.Tensor, ...]
Attention = Callable[..., torch.Tensor]


@pytest.fixture(params=[1, 3, 100])
def attention(request: pytest.FixtureRequest) -> Attention:
    """In chunks of the scores of one head, of three, of all."""
    return functools.partial(cpu_attention.attention, chunk_bytes=request.param * 4 * 5 * 7)


def leaves(bias: tuple[int, ...] = (2, 4, 5, 7), dtype: torch.dtype = torch.float32) -> Leaves:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8)]
    heads = [torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes]
    made = (*heads, torch.randn(bias, generator=generator))
    return tuple(tensor.to(dtype).requires_grad_() for tensor in made)


def by_hand(given: Leaves, kept: torch.Tensor | None = None, share: float = 1.0) -> torch.Tensor:
    query, key, value, bias = given
    weights = F.softmax(query @ key.transpose(2, 3) + bias, dim=-1)
    return (weights if kept is None else weights * kept / share) @ value


def assert_same(found: torch.Tensor, wanted: torch.Tensor, given: Leaves) -> None:
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    asked = [tensor for tensor in given if tensor.requires_grad]
    one, other = (torch.autograd.grad((each * weights).sum(), asked) for each in (found, wanted))
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bias", [(2, 4, 5, 7), (1, 4, 5, 7), (2, 1, 5, 7), (1, 1, 5, 7)])
def test_values_and_gradients(attention: Attention, bias: tuple[int, ...]) -> None:
    given = leaves(bias)
    assert_same(attention(*given), by_hand(given), given)


def test_a_bias_over_keys_alone_needs_no_gradient(attention: Attention) -> None:
    given = leaves((2, 1, 1, 7))
    with torch.no_grad():
        given[3][1, ..., -3:] = torch.finfo(torch.float32).min
    given[3].requires_grad_(False)
    assert_same(attention(*given), by_hand(given), given)


def test_dropped_weights_are_dropped_in_the_backward_pass_too(attention: Attention) -> None:
    query, key, _, bias = given = leaves()
    eye = torch.eye(7).expand(2, 4, 7, 7)
    torch.manual_seed(0)
    kept = attention(query, key, eye, bias, 0.5) != 0
    assert 0 < int(kept.sum()) < kept.numel()
    torch.manual_seed(0)
    assert_same(attention(*given, 0.5), by_hand(given, kept, 0.5), given)


def test_the_share_is_what_was_asked_for(attention: Attention) -> None:
    query, key, value, bias = (torch.zeros(1, 1, 700, 700) for _ in range(4))
    value = torch.eye(700)[None, None]
    torch.manual_seed(0)
    weights = attention(query, key, value, bias, 0.1)
    kept = float((weights != 0).float().mean())
    assert kept == pytest.approx(0.9, abs=5 * (0.9 * 0.1 / 700**2) ** 0.5)  # five deviations
    assert float(weights.max()) == pytest.approx(1 / 700 / 0.9, rel=1e-4)
    across = (weights != 0).float()
    # As much in each row, column and place of four: what one draw decides on is not the same.
    for dim in (2, 3):
        assert float(across.mean(dim).std()) == pytest.approx((0.09 / 700) ** 0.5, rel=0.2)
    fours = across.view(-1, 4)
    assert torch.corrcoef(fours.T).fill_diagonal_(0).abs().max() < 0.02


def test_draws_come_from_torchs_generator(attention: Attention) -> None:
    given = leaves()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(attention(*given, 0.3))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_bfloat16_is_near_float32(attention: Attention) -> None:
    exact, half = leaves(), leaves(dtype=torch.bfloat16)
    wanted, found = attention(*exact), attention(*half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03)
    one: Any = torch.autograd.grad(found.float().square().sum(), half)
    other: Any = torch.autograd.grad(wanted.square().sum(), exact)
    for first, second in zip(one, other, strict=True):
        assert first.dtype == torch.bfloat16
        assert float((first.float() - second).abs().max()) < 0.05 * float(second.abs().max())
