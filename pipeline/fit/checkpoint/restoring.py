"""A checkpoint -> optimizer, schedule and generators as they were.

No process reads more of ``optimizer.pt`` than it keeps. Of a sharded model each reads its shards,
from mapped files. Of one that each holds in full, the first process reads, and sends to the others.
"""

import functools
from typing import Any

import torch
import torch.distributed as dist

from pipeline.console.logs import note
from pipeline.errors import DuetError
from pipeline.fit.checkpoint.format import Checkpoint, damaged
from pipeline.fit.checkpoint.identity import differences
from pipeline.fit.checkpoint.staging import map_tensors, tensors_of
from pipeline.fit.checkpoint.train_state import restore_rng_state, rng_file
from pipeline.fit.device import is_out_of_memory
from pipeline.fit.distributed.fsdp import is_sharded, shard_optimizer_state
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.launch import is_of_a_collective
from pipeline.fit.training.optim import take_over


def restore(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    identity: dict[str, Any],
    group: HostGroup,
) -> None:
    """Put optimizer, schedule and, on as many processes, generators where the checkpoint has them.

    Optimizer and schedule are as new. Where the run's identity differs, its own rates count.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    step, before = checkpoint.state.step, checkpoint.processes
    try:
        saved = _optimizer_state(checkpoint, optimizer, group)
        if differences(checkpoint.identity, identity):
            take_over(optimizer, schedule, saved, step)
        else:
            optimizer.load_state_dict(saved)
            schedule.load_state_dict(checkpoint.load("scheduler.pt"))
        if schedule.last_epoch != step:
            raise ValueError("the schedule is at another step")
        if before == group.size:
            restore_rng_state(checkpoint.load(rng_file(group.rank, group.size)))
            return
        note(
            f"started on {before} process{'es' * (before > 1)}, resumed on {group.size}: the "
            "global batch size stays; micro-batches and dropout differ"
        )
    except DuetError:
        raise
    except Exception as error:  # states of a wrong shape fail wherever they are first used
        if is_out_of_memory(error) or is_of_a_collective(error):
            raise
        raise damaged(checkpoint.folder, error) from error


def _optimizer_state(
    checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, group: HostGroup
) -> dict[str, Any]:
    weights = [weight for each in optimizer.param_groups for weight in each["params"]]
    if any(map(is_sharded, weights)):
        return shard_optimizer_state(optimizer, checkpoint.optimizer_state())
    here: dict[str, torch.Tensor] = {}  # the tensors of the first process

    def read() -> Any:
        saved = checkpoint.optimizer_state()
        here.update(tensors_of(saved["state"]))
        # The forms of its tensors alone; small ones stay.
        return map_tensors(saved, lambda _, t: t.to("meta") if t.dim() else t.clone())

    outline = group.run_on_first(read)

    def receive(name: str, value: torch.Tensor, device: torch.device) -> torch.Tensor:
        if not value.is_meta:
            return value
        if group.rank == 0:
            # Copied, also on a CPU: the file may be deleted during the run.
            tensor = here[name].to(device, copy=True)
        else:
            tensor = torch.empty_like(value, device=device)
        if group.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    state = {
        index: map_tensors(
            values, functools.partial(receive, device=weights[index].device), f".{index}"
        )
        for index, values in outline["state"].items()
    }
    return {**outline, "state": state}
