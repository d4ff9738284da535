"""Joins the processes that a launcher started, on accelerate's terms, and says when one is lost."""

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.errors import ConfigError, ProcessError
from pipeline.fit.model.lora import quiet_bitsandbytes
from pipeline.world import World

_SECONDS_UNTIL_TOLD = 5.0


@contextlib.contextmanager
def told_while_waiting(world: World, seconds: float = _SECONDS_UNTIL_TOLD) -> Iterator[None]:
    """Say which processes are waited for, if they are not there after some seconds.

    A ``WORLD_SIZE`` that is left in an environment would else be a silent wait of minutes. One
    process of each node says it: on a node that is waited for, there is none.
    """
    others = world.size - 1
    where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    text = (
        f"note: waiting for {others} other process{'es' * (others > 1)} "
        f"(WORLD_SIZE={world.size}, RANK={world.rank}) at {where}; "
        "unset WORLD_SIZE to run alone"
    )
    timer = threading.Timer(seconds, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if others and world.local_rank == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_launcher(world: World) -> None:
    """Refuse a number of processes that no launcher started."""
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world.size > 1 and lacking:
        raise ConfigError(
            "WORLD_SIZE is set, but no address where the processes meet",
            where="environment",
            got=f"WORLD_SIZE={world.size}, but no {' and no '.join(lacking)}",
            do="unset WORLD_SIZE to run alone, or start with torchrun",
        )


@contextlib.contextmanager
def join_processes(world: World, *, bf16: bool = False) -> Iterator[Any]:
    """Yield accelerate's Accelerator, joined with the run's other processes.

    Raises:
        ConfigError: The launcher asks for what is not supported.
        ProcessError: Another process ended while this one waited for it.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs

    # The state is global: without this, a second run in this process keeps the first's precision.
    AcceleratorState._reset_state()
    was_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    # torch 2.13 has a new name for it, which accelerate does not know.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
    # Kept until the end of the forward pass, copies in bfloat16 would be a second model; no matrix
    # is used twice in a pass.
    autocast = AutocastKwargs(cache_enabled=False)
    quiet_bitsandbytes()  # accelerate imports it where it is installed
    check_launcher(world)
    with told_while_waiting(world):
        accelerator = Accelerator(
            # Unless told so, accelerate does not join processes that have no GPU.
            cpu=world.size > 1 and not _has_gpu(),
            mixed_precision="bf16" if bf16 else "no",
            kwargs_handlers=[parallel, autocast],
        )
    check_joined(accelerator, world.size)
    try:
        yield accelerator
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not is_of_a_collective(error):
            raise
        raise ProcessError(
            "another process of the run has ended",
            where=f"seen by process {accelerator.process_index} of {accelerator.num_processes}",
            got=str(error).splitlines()[0],
            do="see its last message; if it has none, it was killed, often because memory ran out. "
            "The same command resumes from the newest checkpoint",
        ) from error
    # Only after a good end: after a fault the others may wait in a collective, and so would this.
    if not was_joined:
        accelerator.state.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def keeps_gradients(model: torch.nn.Module) -> bool:
    """Return whether gradients are to be made zero in place, and not taken away.

    DistributedDataParallel's are views of its buckets. Taken away, they are made anew beside the
    buckets by a step's first micro-batch, and are in memory twice until its last.
    """
    return isinstance(model, torch.nn.parallel.DistributedDataParallel)


def is_of_a_collective(error: Exception) -> bool:
    """Return whether torch raised it because it could not reach another process."""
    # gloo has no class of its own: its messages begin with the place in its source.
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def check_joined(accelerator: Any, processes: int) -> None:
    """Refuse what a launcher can set up and this program would do wrong without a word."""
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # the first two: not by the launcher
        raise ConfigError(
            "accelerate is configured with unsupported sharding",
            where="accelerate launch",
            got=kind,
            do='launch without it, and give --fsdp "full_shard"',
        )
    if accelerator.num_processes != processes:
        raise ConfigError(
            "the processes of this run cannot join",
            where="WORLD_SIZE",
            got=f"{processes}, but this process sees {accelerator.num_processes}",
            do="start one process, or give each a device of its own",
        )


def _has_gpu() -> bool:
    """Return whether there is a device that several processes can train on."""
    if not hasattr(torch, "accelerator"):  # torch before 2.6
        return torch.cuda.is_available()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type != "mps"
