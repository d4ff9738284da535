"""A model's config -> the floating-point operations that a row of given lengths takes.

A row of S encoder and T decoder tokens takes ``flops(S, T)`` in the forward pass; a micro-batch
of n rows takes n times that of its longest lengths. So padding has a price in one unit:

    useful = sum of flops(S_i, T_i)        padded = sum of n * flops(max S, max T)

A multiplication with its addition counts as two. The matrix products are counted: projections,
feed-forward, attention (its whole square, as kernels that take T5's position bias compute it) and
the output over the vocabulary. Norms, softmax and look-ups are not.

>>> flops = ModelFlops.of(FLAN_T5_BASE)
>>> f"{flops(2048, 512):.3e}"
'7.355e+11'
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError
from pipeline.fit.model.sizes import side_config, vocabulary_rows

TRAINING = 3
"""Forward and backward pass together, in forward passes."""


def training_passes(*, adapted: bool) -> int:
    """Return what a training step takes, in forward passes; an adapter's base has no gradient."""
    return TRAINING - 1 if adapted else TRAINING


FLAN_T5_BASE = SimpleNamespace(
    d_model=768,
    d_kv=64,
    d_ff=2048,
    num_heads=12,
    num_layers=12,
    num_decoder_layers=12,
    vocab_size=32128,
    feed_forward_proj="gated-gelu",
)
"""What its config says of its sizes, for figures that need no model at hand."""

Lengths = TypeVar("Lengths", int, npt.NDArray[np.int64])


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """The sizes of an encoder or a decoder."""

    layers: int
    width: int
    """Of the hidden states."""
    heads: int
    attention: int
    """The width of all heads together."""
    keys: int
    """The same of the keys, and of the values: less where queries share them."""
    feed_forward: int
    """Elements of the feed-forward's matrices."""

    @property
    def projections(self) -> int:
        """The elements of attention's four matrices."""
        return 2 * self.width * (self.attention + self.keys)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFlops:
    """Counts the operations of an encoder-decoder."""

    encoder: Side
    decoder: Side
    output: int
    """Elements of the output matrix."""

    @classmethod
    def of(cls, config: Any) -> "ModelFlops":
        """Return the counter for a transformers config; refuse one that does not name its sizes."""
        encoder, decoder = (_side(config, side) for side in ("encoder", "decoder"))
        return cls(encoder=encoder, decoder=decoder, output=decoder.width * vocabulary_rows(config))

    def __call__(self, encoder_length: Lengths, decoder_length: Lengths) -> Any:
        """Return the operations of a row's forward pass: a float, or float64 like the lengths."""
        s, t = np.float64(1) * encoder_length, np.float64(1) * decoder_length
        encoder, decoder = self.encoder, self.decoder
        in_encoder = (encoder.projections + encoder.feed_forward) * s
        in_encoder = in_encoder + 2 * encoder.attention * s * s
        # Of the decoder's eight projections, cross-attention has two over the encoder's tokens.
        queries = 2 * decoder.width * decoder.attention
        in_decoder = (decoder.projections + queries + decoder.feed_forward) * t
        in_decoder = in_decoder + 2 * encoder.width * decoder.keys * s
        in_decoder = in_decoder + 2 * decoder.attention * (t + s) * t
        layers = encoder.layers * in_encoder + decoder.layers * in_decoder
        return 2 * (layers + self.output * t)


def _side(config: Any, side: str) -> Side:
    """Read one side's sizes, by the names that T5, BART and nested configs give them."""
    own = side_config(config, side)
    first = "num_decoder_layers" if side == "decoder" else "num_layers"
    layers = _size(
        own, first, f"{side}_layers", f"num_{side}_layers", "num_layers", "num_hidden_layers"
    )
    width = _size(own, "d_model", "hidden_size")
    heads = _size(own, "num_heads", f"{side}_attention_heads", "num_attention_heads")
    head = getattr(own, "d_kv", None) or getattr(own, "head_dim", None) or width // heads
    inner = _size(own, "d_ff", f"{side}_ffn_dim", "intermediate_size")
    gated = "gated" in getattr(own, "feed_forward_proj", "") or hasattr(own, "hidden_activation")
    return Side(
        layers=layers,
        width=width,
        heads=heads,
        attention=heads * head,
        keys=(getattr(own, "num_key_value_heads", None) or heads) * head,
        feed_forward=(3 if gated else 2) * width * inner,
    )


def _size(config: Any, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise ModelError(
        "the model's config does not name its sizes",
        where="config.json",
        got=f"none of {', '.join(names)}",
        do="use a T5, or a model whose config has one of these",
    )
