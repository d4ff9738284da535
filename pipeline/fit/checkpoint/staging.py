"""What training changes, copied to the memory of the process that writes it.

A thread can then write the copy while the steps go on. It takes as much memory as weights and
optimizer together, for as long as the writing takes; on a CPU that is beside the originals.

Of a model in shares, each tensor is made whole by itself and let go of after it is copied, so that
no device ever holds more than its shares and one whole tensor. All processes must take part.
"""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.fit.distributed.fsdp import full_tensor
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.lora import is_adapted


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's weights, apart from the model."""

    tensors: dict[str, torch.Tensor]
    """By name, as in its state dict; matrices that are one are one here, too."""
    tied: bool
    """Whether input and output share one matrix."""


def copy_weights(model: Any, *, keep: bool) -> Weights:
    """Return a model's weights, in main memory.

    Args:
        model: A transformers model, not wrapped; of one with an adapter, what is trained is copied.
        keep: False in processes that only give their shares; they get no tensors.
    """
    tied = not is_adapted(model) and is_tied(model)
    chosen = model.state_dict(keep_vars=True)
    if is_adapted(model):
        chosen = {name: weight for name, weight in chosen.items() if weight.requires_grad}
    copies: dict[int, torch.Tensor] = {}
    for weight in chosen.values():
        if id(weight) not in copies:
            copies[id(weight)] = _copy(weight.detach(), keep=keep)
    tensors = {name: copies[id(weight)] for name, weight in chosen.items()} if keep else {}
    return Weights(tensors=tensors, tied=tied)


def copy_state(value: Any, *, keep: bool) -> Any:
    """Return the state of an optimizer or a schedule with its tensors in main memory.

    Args:
        value: Dicts and lists of tensors and plain values.
        keep: As above; without it the result means nothing.
    """
    if isinstance(value, torch.Tensor):
        return _copy(value.detach(), keep=keep)
    if isinstance(value, dict):
        return {name: copy_state(item, keep=keep) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copy_state(item, keep=keep) for item in value)
    return value


def _copy(tensor: torch.Tensor, *, keep: bool) -> torch.Tensor:
    gathered = full_tensor(tensor)
    return gathered.to("cpu", copy=True) if keep else gathered.new_empty(0)
