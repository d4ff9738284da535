"""The state of a run, copied aside: a thread writes the copy while the steps go on.

Each writing process copies and writes its own part of the state: whole tensors, dealt out so that
all have about as many bytes. Of a sharded model each tensor is gathered by itself, and copied by
the process whose part it is in, so that no device holds more than its shards and one full tensor.
All processes must take part.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.fit.distributed.fsdp import full_tensor
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.lora import is_adapted

_SLAB = 1 << 30
"""Bytes that are allocated at once: torch rounds pinned memory up to a power of two."""
_ALIGNED = 64


class Staging:
    """Buffers in main memory for copies of tensors: allocated once, and reused.

    They take as much memory as what is copied. For tensors of a GPU they are pinned: a copy then
    takes the bus at its full rate, and needs no buffer on its way.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def copy(self, tensors: Mapping[str, torch.Tensor], mine: set[str]) -> dict[str, torch.Tensor]:
        """Return copies of some of the tensors, valid until the next call.

        Args:
            tensors: On any device; of sharded ones all processes give the same, in one order.
            mine: The names of those that this process copies.
        """
        chosen = {name: tensor for name, tensor in tensors.items() if name in mine}
        if {name: _form(tensor) for name, tensor in chosen.items()} != {
            name: _form(buffer) for name, buffer in self._buffers.items()
        }:
            self._buffers = {}  # before the new ones are made
            self._buffers = _allocated(chosen)
        for name, tensor in tensors.items():
            full = full_tensor(tensor.detach())
            if name in mine:
                self._buffers[name].copy_(full, non_blocking=True)
        if any(tensor.is_cuda for tensor in chosen.values()):
            torch.cuda.synchronize()
        return self._buffers


def _form(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _allocated(like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a buffer for each tensor, many of them in one slab."""
    slab, used = torch.empty(0, dtype=torch.uint8), 0
    left = sum(size_of(tensor) + _ALIGNED for tensor in like.values())
    buffers = {}
    for name, tensor in like.items():
        size = size_of(tensor)
        if used + size > len(slab):
            room = max(size, min(left, _SLAB))
            slab, used = torch.empty(room, dtype=torch.uint8, pin_memory=tensor.is_cuda), 0
        # Each a storage of its own, as torch.save writes all of a storage.
        own = torch.from_numpy(slab.numpy()[used : used + size])
        buffers[name] = own.view(tensor.dtype).view(tensor.shape)
        used += math.ceil(size / _ALIGNED) * _ALIGNED
        left -= size + _ALIGNED
    return buffers


def size_of(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor; of a sharded one, of all its shards."""
    return tensor.numel() * tensor.element_size()


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's weights, apart from the model."""

    tensors: dict[str, torch.Tensor]
    """By name, as in its state dict; of those that are one, the first name alone."""
    tied: bool
    """Whether input and output share one matrix."""
    aliases: dict[str, str]
    """Of an adapter, the other names of its tensors, each with the one above."""
    nbytes: int
    """Of all tensors, in full."""

    def copied(self, copies: Mapping[str, torch.Tensor]) -> "Weights":
        """Return the same with those of its tensors that are among copies."""
        tensors = {name: copies[name] for name in self.tensors if name in copies}
        return dataclasses.replace(self, tensors=tensors)

    def with_all_names(self) -> dict[str, torch.Tensor]:
        """Return the tensors by all their names."""
        return self.tensors | {name: self.tensors[one] for name, one in self.aliases.items()}


def weights_of_model(model: Any) -> Weights:
    """Return a model's weights where they are; of one with an adapter, what is trained."""
    tied = not is_adapted(model) and is_tied(model)
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if is_adapted(model) and not weight.requires_grad:
            continue
        if (one := names.setdefault(id(weight), name)) == name:
            tensors[name] = weight
        else:
            aliases[name] = one
    nbytes = sum(map(size_of, tensors.values()))
    return Weights(tensors=tensors, tied=tied, aliases=aliases, nbytes=nbytes)


def map_tensors(value: Any, change: Callable[[str, torch.Tensor], Any], name: str = "") -> Any:
    """Return nested dicts with each tensor changed; ``change`` gets the keys above it as a name."""
    if isinstance(value, torch.Tensor):
        return change(name, value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change, f"{name}.{key}") for key, item in value.items()}
    return value


def tensors_of(value: Any) -> dict[str, torch.Tensor]:
    """Return the tensors in nested dicts by the names of ``map_tensors``."""
    found: dict[str, torch.Tensor] = {}
    map_tensors(value, lambda name, tensor: found.setdefault(name, tensor))
    return found
