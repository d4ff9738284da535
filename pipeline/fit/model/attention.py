"""T5's attention with one bias a stack: position, causality and padding in one tensor.

transformers gives each layer the position bias [1, H, Q, K] and the mask, and each layer joins
them into a bias of its own, [B, H, Q, K], which the backward pass keeps: of 12 layers and 8 rows of
2,048 tokens, 19 GB in float32. Cross-attention has no position bias and gets one of zeros. Here
the first layer joins them, and the others take what it made; cross-attention's is [B, 1, 1, K].

Nothing of a model is replaced but the function that transformers lets be chosen, and its weights
and its config stay as they are. It is made for training: no cache of keys, no past.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from pipeline.fit.model import cpu_attention

NAME = "duet_shared_bias"
_LAYERS = frozenset({"T5Attention", "MT5Attention"})


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
        layer.register_forward_pre_hook(_give_bias, with_kwargs=True)
    return True


def padding_mask(*, attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor | None:
    """Return which keys are none of padding, bool[B, 1, 1, K]; None where all are.

    transformers' own asks whether there is padding, for which the processor has to wait on a GPU.

    Args:
        attention_mask: bool[B, K].
    """
    return None if attention_mask is None else attention_mask[:, None, None, :]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_bias: torch.Tensor,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return softmax(query @ key.T * scaling + bias), with dropout, times the values.

    Args:
        module: The attention layer.
        query: [B, H, Q, D].
        key: [B, H, K, D].
        value: [B, H, K, D].
        attention_mask: Not used: it is in the bias.
        position_bias: What is added to the scores; broadcasts to [B, H, Q, K].
        dropout: Share of the weights that are dropped, after the softmax.
        scaling: T5: 1.

    Returns:
        [B, Q, H, D], and no weights.
    """
    trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if query.device.type == "cpu" and trains:
        query = query if scaling == 1.0 else query * scaling
        attended = cpu_attention.attention(query, key, value, position_bias, dropout)
    else:
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=position_bias, dropout_p=dropout, scale=scaling
        )
    return attended.transpose(1, 2).contiguous(), None


def _give_bias(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a stack's first layer the bias that it then hands on to the others."""
    if kwargs.get("position_bias") is None:
        caches = (kwargs.get(name) for name in ("past_key_values", "cache"))  # by version
        assert all(cache is None for cache in caches), "made for training: no cache"
        hidden = args[0] if args else kwargs["hidden_states"]
        source = kwargs.get("key_value_states")
        kwargs["position_bias"] = bias_of(
            layer, hidden, hidden if source is None else source, kwargs.get("mask")
        )
    return args, kwargs


def bias_of(
    layer: Any, hidden: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return what is added to a layer's scores: position bias, and the lowest number if masked.

    Args:
        layer: T5's attention layer.
        hidden: What asks, [B, Q, D].
        source: What is asked, [B, K, D].
        mask: bool[B, 1, 1, K], or None.

    Returns:
        Broadcasts to [B, H, Q, K], in the type that queries have.
    """
    device = hidden.device
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    lowest = torch.finfo(dtype).min
    queries, keys = hidden.shape[1], source.shape[1]
    if layer.is_causal:
        causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
        mask = causal[None, None] if mask is None else mask & causal
    if not layer.has_relative_attention_bias:
        bias = torch.zeros((), dtype=dtype, device=device)
        return bias.expand(1, 1, 1, keys) if mask is None else torch.where(mask, bias, lowest)
    bias = layer.compute_bias(queries, keys, device=device).to(dtype)  # [1, H, Q, K]
    return (bias if mask is None else torch.where(mask, bias, lowest)).contiguous()
