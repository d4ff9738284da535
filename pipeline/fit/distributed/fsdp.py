"""``--fsdp``: each process keeps its shard of the weights, their gradients and moments.

torch's own FSDP2. Each layer of the stacks is a group, gathered when it runs and resharded after
it; the root holds the rest, so that the matrix that a tied T5 uses in four modules is in one group.
The weights keep their names and their type: with ``--bf16`` autocast is around them, as without
sharding, and layers are gathered in the type that it computes in.

Gradients are reduced to shards after each micro-batch, not after a step's last one: in full,
between two micro-batches, they would take as much memory as what sharding saves.
"""

import warnings
from typing import Any

import torch
import torch.distributed.fsdp
from torch import nn

from pipeline.config import FitConfig
from pipeline.config.views import Sharding
from pipeline.errors import ConfigError
from pipeline.fit.distributed.fsdp_alone import can_run_alone
from pipeline.fit.distributed.load_once import receive_weights
from pipeline.fit.model.loss import SummedTokenLoss

FULL_PRECISION = "relative_attention_bias"
"""What of a layer is gathered in float32: the type of its gradient, a sum over all positions."""


def sharding_of(config: FitConfig, processes: int) -> Sharding | None:
    """Return the sharding that a run has, None for none: one process has nothing to share.

    Raises:
        ConfigError: Another setting does not go with it, with this torch or any.
    """
    asked = config.sharding
    if asked is None or processes == 1:
        return None
    if not hasattr(torch.distributed.fsdp, "FSDPModule"):
        raise ConfigError(
            "this torch has no FSDP2",
            where="--fsdp",
            got=torch.__version__,
            do="install 2.6 or newer, or leave it out",
        )
    reasons = {
        "--torch-compile": (
            config.torch_compile,
            "torch took four minutes to compile a tiny T5's sharded layers",
        ),
        "--optim": (
            config.optim if config.optim == "adamw_8bit" else "",
            "bitsandbytes keeps the moments of full tensors, in blocks",
        ),
        "--quantize": (config.quantize, "FSDP cannot shard 4-bit weights"),
        "--auto-batch-size": (
            config.auto_batch_size and not can_run_alone(),
            "a process cannot try a size by itself before torch 2.13",
        ),
    }
    for name, (given, reason) in reasons.items():
        if given:
            raise ConfigError(
                f"not supported with --fsdp: {reason}",
                where=name,
                got=given,
                do=f"leave out {name}, or --fsdp",
            )
    return asked


def shard(model: SummedTokenLoss, sharding: Sharding, accelerator: Any) -> nn.Module:
    """Shard a model over all processes, in place; the first one's weights are everyone's.

    It is in main memory, and goes to the device a group at a time. In other processes than the
    first it may be without values. With bf16, layers are gathered in bfloat16, which is half of
    what is sent; gradients are reduced in float32. So are all of the root's: embeddings and the
    loss are as without sharding.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # Of an output that is changed in place, and T5 changes none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    prepared: nn.Module = accelerator.prepare_model(
        model, device_placement=False, evaluation_mode=True
    )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    full = MixedPrecisionPolicy()
    half = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    policy = half if accelerator.mixed_precision == "bf16" else full
    for layer in layers_of(model.model, sharding.layers):
        receive_weights(layer, accelerator.device)
        if policy is half:
            for name, module in layer.named_modules():
                if name.endswith(FULL_PRECISION):
                    fully_shard(module, mesh=mesh, mp_policy=full)
        fully_shard(layer, mesh=mesh, reshard_after_forward=sharding.reshard, mp_policy=policy)
    receive_weights(prepared, accelerator.device)
    fully_shard(prepared, mesh=mesh, mp_policy=full)
    register_fsdp_forward_method(prepared, "with_model")
    return prepared


def layers_of(model: Any, names: tuple[str, ...]) -> list[nn.Module]:
    """Return the layers of a transformers model that are a group each; refuse to find none."""
    names = names or tuple(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        known = {type(module).__name__ for module in model.modules()}
        raise ConfigError(
            "the model has no such layers",
            where="--fsdp-transformer-layer-cls-to-wrap",
            got=", ".join(names) or "nothing",
            do="give one of " + ", ".join(sorted(known)),
        )
    return layers


def gathered_bytes(
    model: Any, sharding: Sharding, *, bf16: bool = False, gradients: bool = False
) -> int:
    """Return what a process gathers of a transformers model at most, beside its shards.

    That is the root's group, the layer that runs and the one that is gathered meanwhile; or all of
    it, where layers are kept after the forward pass. Or, of ``gradients`` before they are reduced,
    which never wait for another layer's.
    """

    def size(module: nn.Module, *, half: bool = False) -> int:
        return sum(
            2 * weight.numel() if half and FULL_PRECISION not in name else weight.nbytes
            for name, weight in module.named_parameters()
            if weight.requires_grad or not gradients
        )

    layers = layers_of(model, sharding.layers)
    root = size(model) - sum(map(size, layers))
    gathered = sorted(size(layer, half=bf16) for layer in layers)
    return root + sum(gathered[-2:] if sharding.reshard or gradients else gathered)


def resharded(model: nn.Module) -> nn.Module:
    """Return the model, resharded: a pass without a backward one leaves groups gathered."""
    for module in model.modules():
        if callable(reshard := getattr(module, "reshard", None)):
            reshard()
    return model


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the shards of all processes, which must all call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor: its shard, or all of it."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is sharded over the processes."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module is elsewhere in older torch


def init_sharded_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give Adafactor sharded moments, which it would make in full by itself."""
    if type(optimizer).__name__ != "Adafactor":
        return
    for group in optimizer.param_groups:
        for weight in filter(is_sharded, group["params"]):
            shapes = {"exp_avg_sq": weight.shape}
            if weight.dim() >= 2:
                shapes = {
                    "exp_avg_sq_row": weight.shape[:-1],
                    "exp_avg_sq_col": weight.shape[:-2] + weight.shape[-1:],
                }
            zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
            optimizer.state[weight] = {"step": 0, "RMS": 0} | _sharded(zeros, weight)


def shard_optimizer_state(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> dict[str, Any]:
    """Return a saved ``state_dict`` of full tensors with each moment sharded as its weight is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {i: _sharded(values, weights[i]) for i, values in saved["state"].items()}
    return saved | {"state": state}


def _sharded(values: dict[str, Any], weight: Any) -> dict[str, Any]:
    """Return a weight's moments sharded: along its first dimension, as it is itself.

    Of each, only this process's shard is read: it may lie in a file.
    """
    from torch.distributed.tensor import DTensor, Replicate

    mesh, result = weight.device_mesh, {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.dim():
            of_columns = name == "exp_avg_sq_col" and weight.dim() == 2
            placements = [Replicate()] if of_columns else weight.placements
            local = value if of_columns else _chunk(value, mesh.size(), mesh.get_local_rank())
            value = DTensor.from_local(
                local.to(weight.device, copy=True),
                mesh,
                placements,
                run_check=False,
                shape=value.shape,
                stride=value.stride(),
            )
        result[name] = value
    return result


def _chunk(tensor: torch.Tensor, count: int, at: int) -> torch.Tensor:
    """Return a shard as FSDP2 cuts it along the first dimension; the last ones may be empty."""
    chunks = tensor.chunk(count)
    return chunks[at] if at < len(chunks) else tensor[:0]
