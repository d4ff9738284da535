"""What one process writes of a checkpoint: copied between two steps, written by its thread.

Tensors are whole, and balanced by size: any number of processes resumes from them, sharded or not,
and ``from_pretrained`` loads the folder. One process writes ``model.safetensors`` and
``optimizer.pt``; several write ``model-0000N-of-0000M.safetensors`` and their like. Of a sharded
model each tensor is gathered by itself, and copied by the process whose part it is in, so that no
device holds more than its shards and one full tensor. All processes must take part.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.fit.checkpoint.hashed_file import HashedFile, Seals, weight_writers, write_hashed
from pipeline.fit.checkpoint.pretrained import (
    Weights,
    deal_files,
    size_of,
    weight_files,
    weights_of_model,
)
from pipeline.fit.checkpoint.train_state import TrainState, rng_file, rng_state
from pipeline.fit.distributed.fsdp import full_tensor
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.model.lora import is_adapted

T = TypeVar("T")
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
        """Return copies of those tensors that are ``mine``, valid until the next call.

        Args:
            tensors: On any device; of sharded ones all processes give the same, in one order.
            mine: Names.
        """
        chosen = {name: tensor for name, tensor in tensors.items() if name in mine}
        if _forms(chosen) != _forms(self._buffers):
            self._buffers = {}  # before the new ones are made
            self._buffers = _allocated(chosen)
        for name, tensor in tensors.items():
            full = full_tensor(tensor.detach())
            if name in mine:
                self._buffers[name].copy_(full, non_blocking=True)
        if any(tensor.is_cuda for tensor in chosen.values()):
            torch.cuda.synchronize()
        return self._buffers


def _forms(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Copies of what one process writes, and what writes them."""

    weights: Weights
    """Copies of those that are this process's."""
    weight_files: dict[str, list[str]]
    """The names of all weights, by file: also those of other processes."""
    writers: dict[str, Callable[[HashedFile], object]]
    """What writes each file of this process."""

    def write(self, folder: Path) -> Seals:
        """Write the files, each hashed as it is written."""
        return write_hashed(folder, self.writers)


def stage_part(
    state: TrainState,
    staging: Staging,
    group: HostGroup,
    ranks: Sequence[int],
    *,
    only_model: bool,
    max_shard_bytes: int,
) -> Part:
    """Copy what this process writes. The copies hold until the next call.

    Args:
        state: The run's.
        staging: Where the copies lie.
        group: The run's processes.
        ranks: Those that write; of a model with an adapter the first one alone.
        only_model: Leave out optimizer, schedule and generators.
        max_shard_bytes: See ``pretrained.weight_files``.
    """
    model = state.unwrapped_model
    adapted = is_adapted(model)
    weights = weights_of_model(model)
    optimizer = {"state": {}} if only_model else state.optimizer.state_dict()
    moments = optimizer["state"]
    ranks = ranks[:1] if adapted else ranks
    files = weight_files(weights.sizes, len(ranks), max_shard_bytes)
    sizes = {key: sum(map(size_of, tensors_of(moments[key]).values())) for key in moments}
    parts = {} if only_model else deal_files("optimizer.pt", sizes, len(ranks))
    my_files, my_parts = (_mine(each, ranks, group.rank) for each in (files, parts))

    chosen = {key: moments[key] for keys in my_parts.values() for key in keys}
    mine = {name for names in my_files.values() for name in names} | set(tensors_of(chosen))
    copies = staging.copy(weights.tensors | tensors_of(moments), mine)
    chosen = map_tensors(chosen, lambda name, _: copies[name])

    groups = copy.deepcopy(optimizer.get("param_groups"))
    objects: dict[str, Any] = {
        file: {"state": {key: chosen[key] for key in keys}, "param_groups": groups}
        for file, keys in my_parts.items()
    }
    if not only_model:
        states = group.gather(rng_state())
        if group.rank == 0:
            objects["scheduler.pt"] = copy.deepcopy(state.schedule.state_dict())
            objects |= {rng_file(i, len(states)): rng for i, rng in enumerate(states)}
    writers: dict[str, Callable[[HashedFile], object]] = {
        file: functools.partial(torch.save, content) for file, content in objects.items()
    }
    if not adapted:  # that is written with its config, by a library
        writers |= weight_writers(my_files, copies)
    return Part(weights=weights.copied(copies), weight_files=files, writers=writers)


def _mine(files: dict[str, T], ranks: Sequence[int], rank: int) -> dict[str, T]:
    """Return the files that are a process's to write: each one's turn comes again."""
    named = enumerate(files.items())
    return {file: content for i, (file, content) in named if ranks[i % len(ranks)] == rank}


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
