"""One process of a run loads a model; the others receive it: its structure, then its weights.

Of flan-t5-xxl each process would else hold 44 GB of main memory while it loads, and read as much.
The structure is the loaded model itself on the device ``meta``, without values: what the files
decide (tied or not, rows, types) is then the same in all processes. Weights follow to each one's
device, all of them or, of a model that is sharded, a group at a time.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.fit.distributed.host_group import HostGroup


def load_once(load: Callable[[], Any], hosts: HostGroup) -> Any:
    """Return what ``load``, called in the first process, returns; in the others without values."""
    if hosts.size == 1:
        return load()
    loaded: list[Any] = []

    def load_and_outline() -> Any:
        loaded.append(load())
        return on_meta(loaded[0])

    structure = hosts.run_on_first(load_and_outline)
    return loaded[0] if loaded else structure


def on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the device ``meta``; what is tied stays tied."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def receive_weights(module: nn.Module, device: torch.device) -> None:
    """Give the first process's parameters and buffers to all, on their devices, in place.

    All processes must call this, with modules that are the same but for values and devices. Tensors
    that are sharded already are left alone.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    received: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for owner in module.modules():
        stores: tuple[dict[str, Any], ...] = owner._parameters, owner._buffers
        for store in stores:
            for name, tensor in list(store.items()):
                if tensor is None or hasattr(tensor, "full_tensor"):
                    continue
                if id(tensor) not in received:  # the old one is kept, or its id may come again
                    received[id(tensor)] = tensor, _received(tensor, device)
                store[name] = received[id(tensor)][1]


def _received(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.is_meta:
        value = torch.empty_like(tensor, device=device)
    else:
        value = tensor.detach().to(device).contiguous()
    dist.broadcast(value, src=0)
    if not isinstance(tensor, nn.Parameter):
        return value
    if value.data_ptr() == tensor.data_ptr():
        return tensor
    return nn.Parameter(value, tensor.requires_grad)
