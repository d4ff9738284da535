"""T5's attention with one bias a stack: position, causality and padding in one tensor.

transformers gives each layer the position bias [1, H, Q, K] and the mask, and each layer joins
them into a bias of its own, [B, H, Q, K], which the backward pass keeps: of 12 layers and 8 rows of
2,048 tokens, 19 GB in float32. Cross-attention has no position bias and gets one of zeros. Here
the first layer joins them, and the others take what it made; cross-attention's is [B, 1, 1, K].

The bias's gradient is summed over the rows in each layer, in float32, before layers are added up:
what layers hand back is [1, H, Q, K], and not [B, H, Q, K] in bfloat16 to be added twelve times.

Under autocast, what queries, keys and values are made of is cast once, and not by each of them.

Nothing of a model is replaced but the function that transformers lets be chosen, and its weights
and its config stay as they are. It is made for training: no cache of keys, no past. Where a model
writes answers, ``stock_attention`` gives it back its own for so long.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from pipeline.fit.model.fast_paths import cpu_attention

NAME = "duet_shared_bias"
_LAYERS = frozenset({"T5Attention", "MT5Attention"})


class Bias(NamedTuple):
    """What is added to the scores of the layers of a stack."""

    joined: torch.Tensor
    """Position and mask; broadcasts to [B, H, Q, K]."""
    position: torch.Tensor | None = None
    """What it was made of, float32[1, H, Q, K], where this gets the gradient in its place."""


def share_bias(model: nn.Module) -> bool:
    """Let a T5 or mT5 take its attention from here; another model stays as it is.

    Returns:
        Whether it does. Before transformers 5 T5 has no attention that can be chosen.
    """
    layers = [module for module in model.modules() if type(module).__name__ in _LAYERS]
    if not layers or not getattr(model, "_supports_sdpa", False):
        return False
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, padding_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    for layer in layers:
        layer.register_forward_pre_hook(_prepare_inputs, with_kwargs=True)
    return True


@contextlib.contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Let a model take its attention from transformers meanwhile, which knows a cache of keys."""
    if model.config._attn_implementation != NAME:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


def padding_mask(*, attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor | None:
    """Return which keys are none of padding, bool[B, 1, 1, K], of bool[B, K].

    transformers' own asks whether there is padding, for which the processor has to wait on a GPU.
    """
    return None if attention_mask is None else attention_mask[:, None, None, :]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_bias: Bias,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return softmax(query @ key.T * scaling + bias), with dropout, times the values: [B, Q, H, D].

    Args:
        module: The attention layer.
        query: [B, H, Q, D].
        key: [B, H, K, D].
        value: [B, H, K, D].
        attention_mask: Not used: it is in the bias.
        position_bias: What is added to the scores.
        dropout: Share of the weights that are dropped, after the softmax.
        scaling: T5: 1.
    """
    joined, position = position_bias
    trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if query.device.type == "cpu" and trains:
        query = query if scaling == 1.0 else query * scaling
        attended = cpu_attention.attention(query, key, value, joined, dropout, position)
    else:
        if position is not None and torch.is_grad_enabled():
            rows = len(query)
            joined = _PassGradient.apply(position, joined, rows)  # type: ignore[no-untyped-call]
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=joined, dropout_p=dropout, scale=scaling
        )
    return attended.transpose(1, 2).contiguous(), None


class _PassGradient(torch.autograd.Function):
    """The joined bias, whose gradient goes to the position bias, summed over the rows at once."""

    @staticmethod
    def forward(ctx: Any, position: torch.Tensor, joined: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the joined bias of each row, as a view: [B, H, Q, K]."""
        ctx.dtype = position.dtype
        return joined.expand(rows, *joined.shape[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad.sum(0, keepdim=True, dtype=ctx.dtype), None, None


def _prepare_inputs(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cast what a layer works on, once; give a stack's first layer the bias that it hands on."""
    if layer.config._attn_implementation != NAME:
        return args, kwargs
    hidden = autocast(args[0] if args else kwargs.pop("hidden_states"))
    source = kwargs.get("key_value_states")
    if source is not None:
        kwargs["key_value_states"] = source = autocast(source)
    if kwargs.get("position_bias") is None:
        caches = (kwargs.get(name) for name in ("past_key_values", "cache"))  # by version
        assert all(cache is None for cache in caches), "made for training: no cache"
        kwargs["position_bias"] = bias_of(
            layer, hidden, hidden if source is None else source, kwargs.get("mask")
        )
    return (hidden, *args[1:]), kwargs


def autocast(hidden: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the type that autocast gives to matrix products; as it is without it.

    Linear layers that share an input cast it one by one otherwise, and its gradients back.
    """
    device = hidden.device.type
    return (
        hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden
    )


def bias_of(
    layer: Any, hidden: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None
) -> Bias:
    """Return what is added to a layer's scores: position bias, and the lowest number if masked.

    Args:
        layer: T5's attention layer.
        hidden: What asks, [B, Q, D], in the type that queries have.
        source: What is asked, [B, K, D].
        mask: bool[B, 1, 1, K], or None.
    """
    device, dtype = hidden.device, hidden.dtype
    lowest = torch.finfo(dtype).min
    queries, keys = hidden.shape[1], source.shape[1]
    if layer.is_causal:
        causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
        mask = causal[None, None] if mask is None else mask & causal
    if not layer.has_relative_attention_bias:
        zero = torch.zeros((), dtype=dtype, device=device)
        return Bias(zero.expand(1, 1, 1, keys) if mask is None else torch.where(mask, zero, lowest))
    position = layer.compute_bias(queries, keys, device=device)
    # In float32 a CPU adds up layers first and then rows, as it always did: runs stay the same.
    keep = (device.type == "cpu" and dtype == position.dtype) or not position.requires_grad
    joined = position if keep else position.detach().to(dtype)
    joined = (joined if mask is None else torch.where(mask, joined, lowest)).contiguous()
    return Bias(joined, None if keep else position)
