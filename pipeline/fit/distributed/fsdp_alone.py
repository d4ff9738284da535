"""A sharded model runs forward and backward in one process alone, to see what fits in memory.

FSDP2 takes communication of one's own. Here a process takes the shards of others to be its own:
memory is that of a pass with the others, and none waits for one that failed.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_NEEDED = ("set_custom_all_gather", "set_custom_reduce_scatter", "reset_iter_state")


@contextlib.contextmanager
def without_communication(model: nn.Module) -> Iterator[None]:
    """Let a sharded model run in this process alone; another model is left as it is.

    Gradients are dropped, and so is what a pass that raised left in FSDP: its root would never
    again end a backward pass, and each gradient from then on would be wrong.
    """
    # Those that are a group each, the root first.
    modules: list[Any] = [m for m in model.modules() if hasattr(m, "set_requires_gradient_sync")]
    _set_communication(modules, alone=True)
    try:
        yield
    finally:
        # First of the gathered parameters, which a failed pass has as it left them.
        model.zero_grad(set_to_none=True)
        for module in modules[:1]:  # the root
            module.reset_iter_state()
        model.zero_grad(set_to_none=True)
        _set_communication(modules, alone=False)


def can_run_alone() -> bool:
    """Return whether a sharded model can: torch before 2.13 lacks what it takes."""
    from torch.distributed.fsdp import FSDPModule

    return all(hasattr(FSDPModule, name) for name in _NEEDED)


def _set_communication(modules: list[Any], *, alone: bool) -> None:
    for module in modules:
        module.set_custom_all_gather(_AllGather(alone))
        module.set_custom_reduce_scatter(_ReduceScatter(alone))


class _Communication:
    """What FSDP asks for besides the operation itself: torch's own, or that of a process alone."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone

    def allocate(
        self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Communication):
    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool
    ) -> Any:
        if not self.alone:
            gather = dist.all_gather_into_tensor
            return gather(output_tensor, input_tensor, group=group, async_op=async_op)
        for rank, place in enumerate(output_tensor.chunk(group.size())):
            if rank != group.rank():  # its own lies in its place already
                place.copy_(input_tensor)
        return None


class _ReduceScatter(_Communication):
    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        if not self.alone:
            reduce = dist.reduce_scatter_tensor
            return reduce(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        output_tensor.copy_(input_tensor.chunk(group.size())[group.rank()])
        return None
