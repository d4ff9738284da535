"""Settings and a model -> the bytes that training it takes on a device.

What the model, its gradient and its optimizer take is counted. What the forward pass keeps for
the backward pass is an estimate: the values that a layer of T5 was seen to keep on a CPU as it is
trained here, but for attention's scores, 5 bytes each, which no kernel of a GPU keeps. (There a
norm keeps less, too, and what dropout drew takes a byte: how much that is was not measured.)
"""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.config.views import ModelSettings, Sharding
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.distributed.fsdp import gathered_bytes
from pipeline.fit.flops import ModelFlops, Side
from pipeline.fit.model.lora import QUANTIZED, WHOLE
from pipeline.fit.model.loss import GPU_CHUNK, is_chunked
from pipeline.fit.training.optim import EIGHT_BIT_FROM, muon_matrices

_FLOAT32 = 4
_KEPT_UNDER_BF16 = 2.6
"""Bytes of a kept value: most are bfloat16 then, the sums between the layers are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    """The weights; under bf16 also their copies for the matrix products.

    Of a sharded model, this process's shards and what it gathers at once.
    """
    gradients: int
    optimizer: int
    activations: int
    """What the layers keep of the largest micro-batch for the backward pass."""
    loss: int
    """What its loss takes: logits, and the gradient of the output matrix."""
    update: int = 0
    """What the optimizer's step takes beside its state, when activations and loss are gone."""

    @property
    def total(self) -> int:
        """The most at one time."""
        passing = max(self.activations + self.loss, self.update)
        return self.parameters + self.gradients + self.optimizer + passing


def training_memory(
    model: Any,
    settings: ModelSettings,
    optim: str,
    shape: Shape,
    *,
    sharding: Sharding | None = None,
    processes: int = 1,
) -> Memory:
    """Return what training takes if its largest micro-batch is of this shape.

    Args:
        model: A transformers model; it may be on the device ``meta``, without weights.
        settings: Precision and checkpointing.
        optim: The optimizer's name.
        shape: Of the largest micro-batch.
        sharding: How the model is sharded; None where each process holds it whole.
        processes: That it is sharded over.

    Raises:
        ModelError: The model's config does not name its sizes.
    """
    in_four_bits = quantized_weights(model) if settings.quantize else []
    quantized = _FLOAT32 * sum(weight.numel() for weight in in_four_bits)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    weights -= sum(weight.nbytes for weight in in_four_bits)
    trained = sum(parameter.nbytes for parameter in _trained(model))
    shards, gathered, gradients = 1, 0, 0
    if sharding is not None:
        shards = processes
        gathered = gathered_bytes(model, sharding, bf16=settings.bf16)
        gradients = gathered_bytes(model, sharding, gradients=True)
    sizes = ModelFlops.of(model.config)
    copies = 0
    if settings.bf16 and sharding is None:  # sharded, it is gathered so
        copies = _cast_bytes(model, in_four_bits)
        if settings.gradient_checkpointing:  # of one layer at a time
            copies //= sizes.encoder.layers + sizes.decoder.layers
    return Memory(
        parameters=weights // shards + gathered + copies + round(quantized * QUANTIZED),
        gradients=trained // shards + gradients,
        optimizer=optimizer_bytes(model, optim) // shards,
        activations=activation_bytes(
            sizes, shape, bf16=settings.bf16, checkpointing=settings.gradient_checkpointing
        ),
        loss=loss_bytes(sizes, shape, chunked=is_chunked(model)),
        update=newton_schulz_bytes(model) if optim == "muon" else 0,
    )


def _cast_bytes(model: Any, in_four_bits: list[torch.Tensor]) -> int:
    """Return what autocast's copies of the matrices take that the backward pass needs again."""
    spared = {id(weight) for weight in in_four_bits}
    spared |= {id(getattr(model.get_output_embeddings(), "weight", None))}  # the loss's own
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return sum(
        weight.nbytes // 2
        for weight in matrices
        if weight.dtype == torch.float32 and id(weight) not in spared
    )


def quantized_weights(model: Any) -> list[torch.Tensor]:
    """Return the weights that ``--quantize`` stores in four bits."""
    base = model.get_base_model()
    whole = {*WHOLE, *(base._keep_in_fp32_modules or ())}
    return [
        module.weight
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not module.weight.requires_grad
        and not whole & set(name.split("."))
    ]


def optimizer_bytes(model: torch.nn.Module, optim: str) -> int:
    """Return what the optimizer keeps of the weights that are trained, in bytes.

    AdamW keeps two values a weight. In 8 bits they take a byte each, with a float32 for each block
    of 256, but those of small weights and of embeddings, which stay in float32. Adafactor keeps a
    value for each row and column of a matrix, Muon one for each weight of the matrices it trains.

    Args:
        model: A transformers model.
        optim: The name that ``--optim`` takes.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    by_muon = {id(weight) for weight in muon_matrices(model)} if optim == "muon" else set()

    def size(weight: torch.nn.Parameter) -> int:
        """Return what is kept of one weight."""
        if id(weight) in by_muon:
            return weight.nbytes
        if optim == "adafactor" and weight.dim() == 2:
            return weight.element_size() * sum(weight.shape)
        if optim == "adafactor":
            return weight.nbytes
        if (
            optim == "adamw_8bit"
            and weight.numel() >= EIGHT_BIT_FROM
            and id(weight) not in embeddings
        ):
            return 2 * (weight.numel() + _FLOAT32 * -(-weight.numel() // 256))
        return 2 * weight.nbytes

    return sum(map(size, _trained(model)))


def newton_schulz_bytes(model: torch.nn.Module) -> int:
    """Return what Muon takes to orthogonalize the update of its largest matrix, in bytes.

    The update in float32, its iterate before and after in bfloat16, and two products of the
    shorter side's square. Matrices come one after another.
    """
    shapes = (sorted(weight.shape) for weight in muon_matrices(model))
    return max((8 * short * long + 4 * short * short for short, long in shapes), default=0)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def activation_bytes(
    sizes: ModelFlops, shape: Shape, *, bf16: bool = False, checkpointing: bool = False
) -> int:
    """Return about what the forward pass over a micro-batch keeps for the backward pass.

    Args:
        sizes: The model's.
        shape: Of the micro-batch.
        bf16: Whether products are computed in bfloat16.
        checkpointing: Whether layers are computed again in the backward pass.
    """
    encoder, decoder = sizes.encoder, sizes.decoder
    s, t = shape.rows * shape.encoder, shape.rows * shape.decoder  # padded tokens
    in_encoder = s * _values_a_token(encoder)
    in_decoder = t * (_values_a_token(decoder) + 4 * decoder.width + 2 * decoder.attention)
    in_decoder += s * 2 * decoder.attention  # cross-attention's keys and values
    if checkpointing:
        # Each layer's input, and all of one layer at a time.
        layers = encoder.layers * s * encoder.width + decoder.layers * t * decoder.width
        layers += max(in_encoder, in_decoder)
    else:
        layers = encoder.layers * in_encoder + decoder.layers * in_decoder
    # T5's position bias of both stacks, the mask of each row added, and a gradient of it.
    biases = encoder.heads * s * shape.encoder, decoder.heads * t * shape.decoder
    values = layers + sum(biases) + max(biases)
    return round(values * (_KEPT_UNDER_BF16 if bf16 else _FLOAT32))


def loss_bytes(sizes: ModelFlops, shape: Shape, *, chunked: bool) -> int:
    """Return what the loss over a micro-batch takes while the layers keep their values.

    Args:
        sizes: The model's.
        shape: Of the micro-batch.
        chunked: Whether it is worked out a chunk at a time: see ``loss.is_chunked``.
    """
    tokens = shape.rows * shape.decoder
    logits = _FLOAT32 * tokens * (sizes.output // sizes.decoder.width)
    if not chunked:
        return 3 * logits  # their logarithms, and their gradient
    hidden = tokens * sizes.decoder.width  # those with a label, and their gradient
    return 2 * min(logits, GPU_CHUNK) + _FLOAT32 * (2 * hidden + sizes.output)


def _values_a_token(side: Side) -> int:
    """Return the values that self-attention and feed-forward of a layer keep of a token.

    Four of the hidden state's width around each of two norms, with one for what was dropped; the
    projections of attention; and five of the feed-forward's width, if it has a gate.
    """
    return 8 * side.width + 4 * side.attention + 5 * side.feed_forward // (3 * side.width)
