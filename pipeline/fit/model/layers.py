"""Layers of a transformers model that torch has as one operation, with the same weights.

T5's norm is five operations and its GELU eight, each a pass over memory, and most of what they
make is kept for the backward pass. torch's own are one each and keep their input. The values
differ by rounding: they are computed in float32 either way where the weights are.
"""

from torch import nn

_NORMS = frozenset({"T5LayerNorm", "MT5LayerNorm", "UMT5LayerNorm"})
"""Those that scale, and neither shift nor subtract a mean."""


def fuse_layers(model: nn.Module) -> None:
    """Put torch's own layers in the place of norms and activations, in place; names stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (fused := _fused(child)) is not None:
                setattr(parent, name, fused)


def _fused(layer: nn.Module) -> nn.Module | None:
    kind = type(layer).__name__
    if kind == "NewGELUActivation":
        return nn.GELU(approximate="tanh")
    if kind not in _NORMS:
        return None
    weight, epsilon = layer.weight, layer.variance_epsilon
    assert isinstance(weight, nn.Parameter)
    assert isinstance(epsilon, float)
    norm = nn.RMSNorm(weight.shape[0], eps=epsilon)
    norm.weight = weight
    return norm
