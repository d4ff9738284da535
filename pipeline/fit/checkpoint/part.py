"""What one process writes of a checkpoint: copied between two steps, written by its thread.

Tensors are whole, and dealt out by size: any number of processes resumes from them, sharded or not,
and ``from_pretrained`` loads the folder. One process writes ``model.safetensors`` and
``optimizer.pt``; several write ``model-0000N-of-0000M.safetensors`` and their like.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.fit.checkpoint.hashed_file import HashedFile, write_safetensors
from pipeline.fit.checkpoint.pretrained import deal_files, weight_files
from pipeline.fit.checkpoint.staging import (
    Staging,
    Weights,
    map_tensors,
    size_of,
    tensors_of,
    weights_of_model,
)
from pipeline.fit.checkpoint.train_state import TrainState, rng_file, rng_state
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.model.lora import is_adapted

T = TypeVar("T")
Seals = dict[str, dict[str, Any]]
"""Size and hash of files, by name."""


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
        seals = {}
        for name, write in self.writers.items():
            with HashedFile(folder / name) as file:
                write(file)
            seals[name] = file.seal()
        return seals


def stage_part(
    state: TrainState,
    staging: Staging,
    group: HostGroup,
    ranks: Sequence[int],
    *,
    only_model: bool = False,
) -> Part:
    """Copy what this process writes; all must take part. The copies hold until the next call.

    Args:
        state: The run's.
        staging: Where the copies lie.
        group: The run's processes.
        ranks: Those that write; of a model with an adapter the first one alone.
        only_model: Leave out optimizer, schedule and generators.
    """
    model = state.unwrapped_model
    adapted = is_adapted(model)
    weights = weights_of_model(model)
    optimizer = {"state": {}} if only_model else state.optimizer.state_dict()
    moments = optimizer["state"]
    ranks = ranks[:1] if adapted else ranks
    files = weight_files({name: size_of(t) for name, t in weights.tensors.items()}, len(ranks))
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
        writers |= {
            file: functools.partial(write_safetensors, {name: copies[name] for name in names})
            for file, names in my_files.items()
        }
    return Part(weights=weights.copied(copies), weight_files=files, writers=writers)


def _mine(files: dict[str, T], ranks: Sequence[int], rank: int) -> dict[str, T]:
    """Return the files that are a process's to write: each one's turn comes again."""
    named = enumerate(files.items())
    return {file: content for i, (file, content) in named if ranks[i % len(ranks)] == rank}
