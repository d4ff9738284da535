"""Attention on a CPU, forward and backward, a few heads at a time.

torch's fused kernel for CPUs knows neither dropout nor a bias that wants a gradient; what it falls
back to goes through memory a dozen times with scores [B, H, Q, K]. Here a chunk of them stays in
the cache from the first product to the last. What is kept for the backward pass is the weights and
one byte for each that says whether it was dropped: 5 bytes a score in place of 12. Forward and
backward take two thirds of the time with 1,024 tokens a side, nine tenths with 256.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

CHUNK = 2 * 1024**2
"""Bytes that stay in the cache."""
_STEPS = 1 << 16
"""Shares of dropped weights are told apart to one part in so many: 0.1 is 0.100006."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    dropout: float = 0.0,
    position: torch.Tensor | None = None,
    chunk_bytes: int = CHUNK,
) -> torch.Tensor:
    """Return softmax(query @ key.T + bias) @ value, with dropout of the weights: [B, H, Q, D].

    Args:
        query: [B, H, Q, D].
        key: [B, H, K, D].
        value: [B, H, K, D].
        bias: Broadcasts to [B, H, Q, K]; over queries and keys only where it needs no gradient.
        dropout: Share of the weights that are dropped; the others grow by as much.
        position: float32[1, H, Q, K], what the bias was made of, if it gets the gradient.
        chunk_bytes: Of a chunk's scores; a head of one row may take more.
    """
    attended: torch.Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, bias, dropout, position, chunk_bytes
    )
    return attended


class _Attention(torch.autograd.Function):
    """Works on [B * H, Q, D]; scores and their gradient are in float32 in any case."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor,
        dropout: float,
        position: torch.Tensor | None,
        chunk_bytes: int,
    ) -> torch.Tensor:
        shape = (*query.shape[:3], key.shape[2])  # B, H, Q, K
        heads = [side.flatten(0, 1) for side in (query, key, value)]
        weights = heads[0].new_empty((len(heads[0]), *shape[2:]))
        kept = torch.empty_like(weights, dtype=torch.bool) if dropout else None
        share = 1 - round(dropout * _STEPS) / _STEPS
        attended = weights.new_empty((*weights.shape[:2], value.shape[3]))
        with torch.autocast("cpu", enabled=False):
            for part in _parts(shape, chunk_bytes):
                q, k, v = (side[part] for side in heads)
                scores = (q @ k.transpose(1, 2)).float()
                for plane, added in zip(scores, _planes(bias, shape, part), strict=True):
                    plane.add_(added)
                weights[part] = scores.softmax(dim=-1)
                used = weights[part]
                if kept is not None:
                    kept[part] = _drawn(scores.shape, share)
                    used = used * kept[part]
                torch.bmm(used, v, out=attended[part])
        ctx.save_for_backward(*heads, weights, kept)
        ctx.shape, ctx.share, ctx.chunk_bytes = shape, share, chunk_bytes
        learned = bias if position is None else position
        ctx.bias = learned.shape, learned.dtype
        return attended.div_(share).reshape(*shape[:3], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *heads, weights, kept = ctx.saved_tensors
        grad = (grad / ctx.share).flatten(0, 1)
        grads = [torch.empty_like(side) for side in heads]
        of_bias = None
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[5]:
            of_bias = torch.zeros(ctx.bias[0], dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for part in _parts(ctx.shape, ctx.chunk_bytes):
                q, k, v = (side[part] for side in heads)
                used, of_scores = weights[part], (grad[part] @ v.transpose(1, 2)).float()
                if kept is not None:
                    used = used * kept[part]
                    of_scores.mul_(kept[part])
                torch.bmm(used.transpose(1, 2), grad[part], out=grads[2][part])
                of_scores.mul_(weights[part])  # the softmax's gradient
                of_scores.addcmul_(weights[part], of_scores.sum(-1, keepdim=True), value=-1)
                if of_bias is not None:
                    planes = _planes(of_bias, ctx.shape, part)
                    for plane, added in zip(planes, of_scores, strict=True):
                        plane.add_(added)
                of_scores = of_scores.to(q.dtype)
                torch.bmm(of_scores, k, out=grads[0][part])
                torch.bmm(of_scores.transpose(1, 2), q, out=grads[1][part])
        query, key, value = (side.reshape(*ctx.shape[:2], *side.shape[1:]) for side in grads)
        learned = None if of_bias is None else of_bias.to(ctx.bias[1])
        handed = (None, None, learned) if ctx.needs_input_grad[5] else (learned, None, None)
        return query, key, value, *handed, None


def _parts(shape: tuple[int, int, int, int], chunk_bytes: int) -> Iterator[slice]:
    """Yield places in the heads of all rows, as many at once as their scores are to be."""
    rows, heads, queries, keys = shape
    count = max(1, chunk_bytes // (4 * queries * keys))
    for start in range(0, rows * heads, count):
        yield slice(start, min(start + count, rows * heads))


def _planes(
    bias: torch.Tensor, shape: tuple[int, int, int, int], part: slice
) -> list[torch.Tensor]:
    """Return the bias [Q, K] of each head in a part, as views of it."""
    whole = bias.expand(shape)
    return [whole[divmod(head, shape[1])] for head in range(part.start, part.stop)]


def _drawn(shape: torch.Size, share: float) -> torch.Tensor:
    """Return what is kept, bool: a draw of 64 bits decides on four, in a sixth of the time."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    lowest = -(_STEPS // 2)
    return draws.view(torch.int16)[:count].view(shape) < lowest + round(share * _STEPS)
