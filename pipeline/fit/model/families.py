"""Where families of encoder-decoders differ, and how each says it.

sizes          in the config itself (T5, BART), or in one of each side (T5Gemma): see ``sizes.py``
start id       what transformers puts before labels: T5's padding, Gemma's ``<bos>``
logits         what the output matrix gives; with Gemma's cap, or with BART's bias added
no gradient    vision towers never have one; experts, and what LongT5 keeps for blocks of
               tokens, have none in a batch that does not come to them
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.fit.model.sizes import side_config, vocabulary_rows
from pipeline.json_object import read_json_object

WEIGHTS = "model.safetensors"

NO_TEXT = frozenset({"vision_tower", "multi_modal_projector"})
"""Modules that no text passes through."""
_LEFT_OUT = frozenset({"SwitchTransformersExperts", "LongT5TransientGlobalAttention"})
"""Layers of which a batch may leave parameters out."""


def decoder_start_id(model: Any) -> int | None:
    """Return the id that transformers starts the decoder's input with, given labels.

    None where it needs to be told, or takes one of the labels (mBART).
    """
    label = vocabulary_rows(model.config) - 1
    labels = torch.tensor([[label]], device="cpu")  # whatever device models are made on
    try:
        start = int(model.prepare_decoder_input_ids_from_labels(labels)[0, 0])
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return None if start == label else start


def logit_cap(config: Any) -> float | None:
    """Return the bound c where logits x are made c · tanh(x / c); None where they are not."""
    cap: float | None = getattr(side_config(config, "decoder"), "final_logit_softcapping", None)
    return cap


def states_tying(config: Any) -> bool:
    """Return whether ``tie_word_embeddings`` of a config says what is tied.

    T5's and its like say ``true`` in transformers 5 whatever the weights are.
    """
    return not type(config)(tie_word_embeddings=False).tie_word_embeddings


def input_embeddings(model: Any) -> list[Any]:
    """Return the modules that look ids up: the model's own, the encoder's and the decoder's."""
    own = model.get_input_embeddings()
    if not getattr(model.config, "is_encoder_decoder", False):
        return [own]
    stacks = model.get_encoder(), model.get_decoder()
    return [own, *(stack.get_input_embeddings() for stack in stacks)]


def complete_config(model: Any, name: str, eos_id: int) -> None:
    """Let both configs say what the decoder starts with, pads with and ends at.

    Raises:
        ModelError: The model does not say what its decoder starts with.
    """
    config, generation = model.config, model.generation_config
    if config.pad_token_id is None:
        config.pad_token_id = eos_id  # masked wherever it stands
    start = decoder_start_id(model)
    for named in (config, generation):
        start = getattr(named, "decoder_start_token_id", None) if start is None else start
    if start is None:
        raise ModelError(
            "the model does not say what its decoder starts with",
            where=name,
            got="no decoder_start_token_id",
            do="set it in config.json (T5: 0)",
        )
    config.decoder_start_token_id = generation.decoder_start_token_id = start
    generation.pad_token_id = config.pad_token_id
    ends = generation.eos_token_id
    if ends is None:
        generation.eos_token_id = eos_id
    elif eos_id not in (ends := ends if isinstance(ends, list) else [ends]):
        generation.eos_token_id = [*ends, eos_id]  # what the answers of the data end with


def has_own_head(name: str, model: Any) -> bool:
    """Return whether a folder's weights untie the head of a model that its config ties."""
    head = model.get_output_embeddings().weight
    one = {n for n, weight in model.named_parameters(remove_duplicate=False) if weight is head}
    index, single = (Path(name) / file for file in (f"{WEIGHTS}.index.json", WEIGHTS))
    with contextlib.suppress(OSError, ValueError, KeyError):
        if index.is_file():
            return len(one & read_json_object(index)["weight_map"].keys()) > 1
        with single.open("rb") as file:  # its header: names and places
            header = read_json_object(file.read(int.from_bytes(file.read(8), "little")))
        return len(one & header.keys()) > 1
    return False


def let_all_have_gradients(model: Any) -> None:
    """Freeze what is never trained, and give zeros to what a batch leaves out, in place.

    DistributedDataParallel waits for the gradient of each parameter, FSDP reduces the same ones in
    all processes, and an optimizer passes over what has none: an expert's moments would depend on
    how a step's rows are cut into micro-batches.
    """
    for name, parameter in model.named_parameters():
        if not NO_TEXT.isdisjoint(name.split(".")):
            parameter.requires_grad = False
    own, *stacks = (module.weight for module in input_embeddings(model))
    if not any(own is weight for weight in (*stacks, model.get_output_embeddings().weight)):
        own.requires_grad = False  # BART's ``shared``, untied
    for layer in model.modules():
        if type(layer).__name__ in _LEFT_OUT:
            layer.register_forward_hook(_with_all_gradients)


def _with_all_gradients(layer: nn.Module, _: Any, output: Any) -> Any:
    trained = [weight for weight in layer.parameters() if weight.requires_grad]
    if not (trained and torch.is_grad_enabled()):
        return output
    first, *rest = output if isinstance(output, tuple) else (output,)
    first = _Join.apply(first, *trained)  # type: ignore[no-untyped-call]
    return (first, *rest) if isinstance(output, tuple) else first


class _Join(torch.autograd.Function):
    """A tensor as it is; each of the weights gets a gradient of zeros besides its own."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """Return a view of the tensor."""
        ctx.forms = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        return hidden.view_as(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradient, and zeros."""
        zeros = (torch.zeros(shape, dtype=dtype, device=place) for shape, dtype, place in ctx.forms)
        return grad, *zeros
