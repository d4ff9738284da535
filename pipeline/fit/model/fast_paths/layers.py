"""Layers of a transformers model that torch has as one operation, with the same weights.

T5's norm is five operations and its GELU eight, each a pass over memory, and most of what they
make is kept for the backward pass. torch's own are one each and keep their input. The values
differ by rounding: they are computed in float32 either way where the weights are.

T5's feed-forward casts to its last matrix's type, which autocast then casts back, and both of its
first matrices cast their input. Here the input is cast once, and nothing else.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from pipeline.fit.model.fast_paths.attention import autocast

_NORMS = frozenset({"T5LayerNorm", "MT5LayerNorm", "UMT5LayerNorm"})
"""Those that scale, and neither shift nor subtract a mean."""
_FEED_FORWARDS = frozenset(
    {
        f"{prefix}Dense{kind}Dense"
        for prefix in ("T5", "MT5", "UMT5")
        for kind in ("Act", "GatedAct")
    }
)


def fuse_layers(model: nn.Module) -> None:
    """Put faster layers in the place of norms, activations, feed-forwards; names stay."""
    for parent in reversed(list(model.modules())):  # what is inside first
        for name, child in list(parent.named_children()):
            if (fused := _fused(child)) is not None:
                setattr(parent, name, fused)


def _fused(layer: nn.Module) -> nn.Module | None:
    kind = type(layer).__name__
    if kind == "NewGELUActivation":
        return nn.GELU(approximate="tanh")
    if kind in _FEED_FORWARDS:
        return FeedForward(layer)
    if kind not in _NORMS:
        return None
    weight, epsilon = layer.weight, layer.variance_epsilon
    assert isinstance(weight, nn.Parameter)
    assert isinstance(epsilon, float)
    norm = RMSNorm(weight.shape[0], eps=epsilon)
    norm.weight = weight
    return norm


class RMSNorm(nn.RMSNorm):
    """torch's norm, for a weight that FSDP gathers in bfloat16 too: its kernel wants one type."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D] of [B, T, D], in its type."""
        return F.rms_norm(hidden, self.normalized_shape, self.weight.to(hidden.dtype), self.eps)


class FeedForward(nn.Module):
    """T5's feed-forward, with or without a gate; takes over the layers of transformers' own."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)

    def forward(self, hidden: torch.Tensor) -> Any:
        """Return [B, T, D] of [B, T, D]."""
        layers: Any = self
        hidden = autocast(hidden)
        if hasattr(self, "wi"):
            inner = layers.act(layers.wi(hidden))
        else:
            inner = layers.act(layers.wi_0(hidden)) * layers.wi_1(hidden)
        return layers.wo(layers.dropout(inner))


def set_dropout(model: Any, rate: float) -> None:
    """Set the dropout rate of all of a model's layers, and of its config."""
    for name in ("dropout_rate", "dropout"):  # T5's, BART's
        if hasattr(model.config, name):
            setattr(model.config, name, rate)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):  # of attention weights
            module.dropout = rate


def checkpoint_activations(model: Any) -> None:
    """Keep each layer's input alone and compute the rest again in the backward pass."""
    kwargs = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name in later transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
