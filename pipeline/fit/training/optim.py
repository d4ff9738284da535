"""Settings -> optimizer and schedule: names, groups, defaults are the Hugging Face trainer's."""

import math
import re
from typing import Any, cast

import torch
from torch import nn

from pipeline.config.views import OptimizerSettings, ScheduleSettings
from pipeline.errors import ConfigError

# T5's own norms have no bias and no common base class: their names tell them.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)

_FUSED = frozenset({"cpu", "cuda"})
"""Devices whose fused AdamW is used unasked: the same values within rounding; on a CPU a fifth of
the time."""


EIGHT_BIT_FROM = 4096
"""Values of a weight from which on bitsandbytes keeps its moments in 8 bits; its own default."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups, in the trainer's order: with decay, and without (biases and norms)."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = id(parameter) in norms or _UNDECAYED.search(name) is not None
            groups[spared].append(parameter)
    return [
        {"params": groups[False], "weight_decay": weight_decay},
        {"params": groups[True], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, options: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimizer that ``--optim`` names; AdamW in one pass where the device has that.

    Args:
        model: On the device that it is trained on.
        options: The optimizer's name and values.

    Raises:
        ConfigError: The optimizer cannot have these values, or this device has no kernels for it.
    """
    groups = parameter_groups(model, options.weight_decay)
    if options.optim == "adafactor":
        from transformers.optimization import Adafactor

        adafactor: Any = Adafactor
        # A rate that we set in place of Adafactor's relative one, as the trainer has it.
        optimizer: torch.optim.Optimizer = adafactor(
            groups, lr=options.learning_rate, scale_parameter=False, relative_step=False
        )
        return optimizer
    make = {"adamw_8bit": _adamw_8bit, "muon": _muon}.get(options.optim, _adamw)
    try:
        return make(model, groups, options)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            "the optimizer cannot be made",
            where=f"--optim {options.optim}",
            got=error,
            do="use --optim adamw_torch, or fix the values named",
        ) from error


def _adamw(
    model: nn.Module, groups: list[dict[str, Any]], options: OptimizerSettings
) -> torch.optim.Optimizer:
    device = next(model.parameters()).device.type
    fused = options.optim == "adamw_torch_fused" or device in _FUSED
    return torch.optim.AdamW(groups, fused=True if fused else None, **_adamw_values(options))


def _adamw_8bit(
    model: nn.Module, groups: list[dict[str, Any]], options: OptimizerSettings
) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW, whose moments take a byte each.

    As in the Hugging Face trainer those of embeddings, whose rows are seldom met, stay in float32;
    bitsandbytes leaves those of small tensors so, too.
    """
    import bitsandbytes

    optim: Any = bitsandbytes.optim
    values = _adamw_values(options)
    trial = nn.Parameter(torch.zeros(EIGHT_BIT_FROM, device=next(model.parameters()).device))
    trial.grad = torch.zeros_like(trial)
    optim.AdamW8bit(
        [trial], **values
    ).step()  # it says only now whether it has kernels for this device
    optimizer: torch.optim.Optimizer = optim.AdamW8bit(
        groups, min_8bit_size=EIGHT_BIT_FROM, **values
    )
    kept = optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            kept.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def _muon(
    model: nn.Module, groups: list[dict[str, Any]], options: OptimizerSettings
) -> torch.optim.Optimizer:
    matrices = muon_matrices(model)
    ids = {id(matrix) for matrix in matrices}
    rest = [
        {**group, "params": [weight for weight in group["params"] if id(weight) not in ids]}
        for group in groups
    ]
    muon = torch.optim.Muon(
        matrices,
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        # Its updates are then about as large as AdamW's, so that one rate is right for both.
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonWithAdamW(muon, _adamw(model, rest, options))


def muon_matrices(model: nn.Module) -> list[torch.Tensor]:
    """Return the weights that Muon trains: of the linear layers inside the blocks.

    An output matrix is none of them, tied or not; nor are the tables of embeddings and of relative
    positions. With LoRA they are the two matrices of each adapted layer.
    """
    output = cast(Any, model).get_output_embeddings()
    outside = {id(weight) for weight in output.parameters()} if output is not None else set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            outside.add(id(module.weight))
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear)
        if module.weight.requires_grad and id(module.weight) not in outside
    ]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some weights and AdamW for the others, as one optimizer.

    Its groups and state are those of the two: the same objects, Muon's first. So a schedule, a
    checkpoint and ``zero_grad`` meet one optimizer.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self._parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # by ``load_state_dict``, with groups and state made anew
        self._share()

    def _share(self) -> None:
        muon, adamw = self._parts
        count = len(muon.param_groups)
        muon.__setstate__({"state": self.state, "param_groups": self.param_groups[:count]})
        adamw.__setstate__({"state": self.state, "param_groups": self.param_groups[count:]})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of both; there is no closure."""
        for part in self._parts:
            part.step()


def _adamw_values(options: OptimizerSettings) -> dict[str, Any]:
    return {
        "lr": options.learning_rate,
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
    }


def take_over(
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    saved: dict[str, Any],
    step: int,
) -> None:
    """Load a saved optimizer's state, but keep this one's own learning rates and other values.

    Args:
        optimizer: As new, with ``schedule``.
        schedule: A ``LambdaLR``; put to where it is after ``step`` steps.
        saved: The state of an optimizer of the same kind on the same parameters.
        step: Steps done.
    """
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    rates = [
        base * shape(step)
        for base, shape in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    schedule.last_epoch, schedule._last_lr = step, rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def warmup_steps(options: ScheduleSettings, total_steps: int) -> int:
    """Return the steps of linear warmup: given, or a fraction of all steps, rounded up."""
    if options.warmup_steps >= 1:
        return int(options.warmup_steps)
    return math.ceil((options.warmup_steps or options.warmup_ratio) * total_steps - 1e-9)


def make_schedule(
    optimizer: torch.optim.Optimizer, options: ScheduleSettings, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning rate's course over ``total_steps`` optimizer steps.

    Raises:
        ConfigError: The course cannot have these values.
    """
    from transformers import get_scheduler

    try:
        schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
            options.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_steps(options, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=options.scheduler_kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "the schedule cannot be made",
            got=error,
            where=f"--lr-scheduler-type {options.lr_scheduler_type}",
            do="give another rate, another schedule, or what it needs in --lr-scheduler-kwargs",
        ) from error
    return schedule
