"""A run's context and checkpoint -> its trainer: model, optimizer, what fits, where it stands."""

import math
from typing import Any

import torch

from pipeline.config import FitConfig
from pipeline.errors import ConfigError, DuetError, ModelError
from pipeline.fit.checkpoint.checkpointer import Saver
from pipeline.fit.checkpoint.format import Checkpoint, damaged
from pipeline.fit.checkpoint.rng import restore_rng_state
from pipeline.fit.checkpoint.run_metadata import run_facts
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.context import RunContext
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import Feeder, cutter_for
from pipeline.fit.data.micro_batches import Cutter, Shape
from pipeline.fit.data.mixture import Mixture
from pipeline.fit.data.sampler import StepPlan
from pipeline.fit.device import is_out_of_memory
from pipeline.fit.distributed.fsdp import init_sharded_moments, shard, shard_optimizer_state
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.load_once import receive_weights
from pipeline.fit.distributed.signals import StopRequest
from pipeline.fit.estimate.memory import optimizer_bytes
from pipeline.fit.estimate.memory_probe import (
    MOST_ROWS,
    MemoryProbe,
    biggest,
    can_probe,
    pays_off,
    warm_up_ddp_buckets,
)
from pipeline.fit.flops import training_passes
from pipeline.fit.model.compile import compile_layers
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.schedule import RunPlan
from pipeline.fit.training.callback import TrainerCallback
from pipeline.fit.training.evaluate import Evaluator
from pipeline.fit.training.logging import Reporter
from pipeline.fit.training.optim import make_optimizer, make_schedule, take_over
from pipeline.fit.training.step import TrainingStep, can_read_late
from pipeline.fit.training.throughput import Meter
from pipeline.fit.training.trainer import Trainer
from pipeline.logs import note


def build_trainer(
    ctx: RunContext,
    checkpoint: Checkpoint | None,
    *,
    callback: TrainerCallback | None = None,
    probe_memory: bool | None = None,
    compile_backend: str = "inductor",
) -> Trainer:
    """Build what takes the steps of a run, as new or as the checkpoint has it.

    Args:
        ctx: The run.
        checkpoint: What it resumes from.
        callback: Is told what happens.
        probe_memory: Try the biggest micro-batches before the first step; None: where it pays off.
        compile_backend: Of ``torch.compile``, with ``--torch-compile``.

    Raises:
        ConfigError: A micro-batch does not fit, or a setting does not fit the model or the device.
        ModelError: The model cannot be loaded.
        CheckpointError: The checkpoint is damaged.
    """
    config, plan, accelerator = ctx.config, ctx.plan, ctx.accelerator
    state = checkpoint.state if checkpoint is not None else RunState()
    # Now, not at the end: nothing in it may fail once the training is done.
    run_metadata = run_facts(ctx)
    note(f"rows per step {plan.rows_per_step} {plan.rows_source}")

    stop, hosts = StopRequest(), HostGroup.join()
    model = _load_model(ctx, checkpoint, hosts)
    wrapped = _wrap(SummedTokenLoss(model, config.label_smoothing_factor), ctx)
    if config.torch_compile:
        compile_layers(model, compile_backend)
    optimizer = make_optimizer(model, config)
    init_sharded_moments(optimizer)
    schedule = make_schedule(optimizer, config, plan.total_steps)

    probe = _memory_probe(ctx, model, wrapped, optimizer)
    max_rows = _rows_at_once(ctx, probe, model)
    _restore(ctx, checkpoint, optimizer, schedule, step=state.step)

    sampler = StepPlan(
        *ctx.data.train.lengths,
        rows_per_step=plan.rows_per_step,
        seed=config.seed,
        group_by_length=config.group_by_length,
        mixture=ctx.data.train if isinstance(ctx.data.train, Mixture) else None,
    )
    cutter = _cutter(ctx, ctx.data.train, model, max_rows)
    wrapped.train()
    if (pays_off(accelerator.device) if probe_memory is None else probe_memory) and can_probe(
        wrapped
    ):
        _check_memory(ctx, probe, sampler, cutter, first=state.step)
    shape = Shape(1, cutter.multiple, cutter.multiple)
    warm_up_ddp_buckets(wrapped, accelerator, shape, ctx.data.tokenizer.eos_id)

    return Trainer(
        model=wrapped,
        plan=plan,
        state=state,
        sampler=sampler,
        loader=Feeder(ctx.data.train, cutter, model.config.pad_token_id, accelerator),
        step=TrainingStep(
            accelerator,
            wrapped,
            optimizer,
            schedule,
            dataset=ctx.data.train,
            stop=stop,
            max_grad_norm=config.max_grad_norm,
            late=can_read_late(optimizer, accelerator.device),
        ),
        evaluator=_evaluator(ctx, model),
        checkpointer=Saver(ctx, wrapped, optimizer, schedule, state),
        meter=_meter(config, accelerator, plan, first_step=state.step),
        reporter=Reporter(
            config,
            is_main=accelerator.is_main_process,
            total_steps=plan.total_steps,
            first_step=state.step,
            log=state.log,
        ),
        stop=stop,
        hosts=hosts,
        run_metadata=run_metadata,
        callback=callback or TrainerCallback(),
    )


def _load_model(ctx: RunContext, checkpoint: Checkpoint | None, hosts: HostGroup) -> Any:
    settings, tokenizer = ctx.config.model, ctx.data.tokenizer
    if checkpoint is None:
        return build_model(settings, tokenizer, say=note, hosts=hosts)
    note(f"going on from {checkpoint.folder.name}")
    try:
        return build_model(settings, tokenizer, checkpoint=checkpoint.folder, hosts=hosts)
    except ModelError as error:
        raise damaged(checkpoint.folder, error) from error


def _wrap(model: SummedTokenLoss, ctx: RunContext) -> torch.nn.Module:
    """Return the model as the processes train it: sharded, or whole in each."""
    if ctx.sharding is not None:
        return shard(model, ctx.sharding, ctx.accelerator)
    receive_weights(model, ctx.accelerator.device)
    wrapped: torch.nn.Module = ctx.accelerator.prepare_model(model)
    return wrapped


def _memory_probe(
    ctx: RunContext, model: Any, wrapped: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> MemoryProbe:
    """Return what tries micro-batches beside the optimizer's values, which may not be there."""
    unmade = 0 if optimizer.state else optimizer_bytes(model, ctx.config.optim)
    if ctx.sharding is not None:  # each process has its shard of the values
        unmade //= ctx.accelerator.num_processes
    return MemoryProbe(
        wrapped, ctx.accelerator, token_id=ctx.data.tokenizer.eos_id, reserved=unmade
    )


def _rows_at_once(ctx: RunContext, probe: MemoryProbe, model: Any) -> int:
    """Return how many rows of full length a micro-batch may have."""
    given, accelerator = ctx.config.per_device_train_batch_size, ctx.accelerator
    if not ctx.config.auto_batch_size:
        return given
    if accelerator.device.type != "cuda":
        note("--auto-batch-size means nothing on this device; ignored")
        return given
    found = probe.find_batch_size(
        longest=_cutter(ctx, ctx.data.train, model, given).fullest,
        limit=math.ceil(ctx.plan.rows_per_step / accelerator.num_processes),
    )
    note(f"--auto-batch-size: {found} rows of full length at once")
    return found


def _restore(
    ctx: RunContext,
    checkpoint: Checkpoint | None,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    step: int,
) -> None:
    """Put optimizer, schedule and generators where the checkpoint has them, or seed them."""
    from accelerate.utils import set_seed

    accelerator = ctx.accelerator
    # Device-specific: each process draws dropout of its own.
    set_seed(ctx.config.seed + step, device_specific=True)
    if checkpoint is None:
        return
    try:
        mapped = ctx.sharding is not None
        saved = shard_optimizer_state(optimizer, checkpoint.load("optimizer.pt", mapped=mapped))
        if checkpoint.differences(ctx.identity):
            take_over(optimizer, schedule, saved, step)
        else:
            optimizer.load_state_dict(saved)
            schedule.load_state_dict(checkpoint.load("scheduler.pt"))
        if schedule.last_epoch != step:
            raise ValueError("the schedule is at another step")
        if checkpoint.processes == accelerator.num_processes:
            restore_rng_state(checkpoint.rng_state(accelerator.process_index))
        else:
            note(_on_other_processes(checkpoint, ctx.plan, accelerator.num_processes))
    except DuetError:
        raise
    except Exception as error:  # states of a wrong shape fail wherever they are first used
        if is_out_of_memory(error):
            raise
        raise damaged(checkpoint.folder, error) from error


def _on_other_processes(checkpoint: Checkpoint, plan: RunPlan, now: int) -> str:
    """Return what changes, and what does not, in a run that other processes began."""
    before = checkpoint.processes
    return (
        f"begun on {before} process{'es' * (before > 1)}, going on on {now}: a step takes "
        f"{plan.rows_per_step} rows as before, cut into other micro-batches; dropout is "
        "drawn anew"
    )


def _check_memory(
    ctx: RunContext, probe: MemoryProbe, sampler: StepPlan, cutter: Cutter, *, first: int
) -> None:
    """Run the biggest micro-batches of the steps that are left.

    Raises:
        ConfigError: One does not fit.
    """
    plan, processes = ctx.plan, ctx.accelerator.num_processes
    left = range(first, min(plan.total_steps, first + MOST_ROWS // plan.rows_per_step + 1))
    cut = (cutter.deal(sampler.rows_of(step), processes) for step in left)
    parts = (rows for dealt in cut for parts in dealt for rows in parts if len(rows))
    shapes = biggest(map(cutter.shape, parts), cutter.flops)
    failed = probe.too_big(shapes)
    if failed is not None:
        raise out_of_memory(ctx, failed)
    note(f"the biggest micro-batch fits: {' or '.join(map(str, shapes))}")


def _cutter(ctx: RunContext, dataset: SupervisedDataset, model: Any, max_rows: int) -> Cutter:
    return cutter_for(
        dataset,
        model.config,
        max_rows,
        ctx.accelerator.device,
        compiled=ctx.config.torch_compile,
    )


def _evaluator(ctx: RunContext, model: Any) -> Evaluator | None:
    if ctx.data.eval is None:
        return None
    return Evaluator(
        ctx.data.eval,
        _cutter(ctx, ctx.data.eval, model, ctx.config.per_device_eval_batch_size),
        model.config.pad_token_id,
        ctx.data.tokenizer,
        ctx.accelerator,
    )


def _meter(config: FitConfig, accelerator: Any, plan: RunPlan, *, first_step: int) -> Meter:
    return Meter(
        device=accelerator.device,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        processes=accelerator.num_processes,
        total_steps=plan.total_steps,
        first_step=first_step,
        passes=training_passes(adapted=bool(config.lora_r)),
    )


def out_of_memory(ctx: RunContext, shape: Shape | None = None) -> ConfigError:
    """Return the error for a run that does not fit; ``shape``: the micro-batch that showed it."""
    rows = ctx.config.per_device_train_batch_size
    return ConfigError(
        "the device is out of memory",
        where="--per-device-train-batch-size",
        got=rows if shape is None else f"{rows}, which makes micro-batches of {shape}",
        do=f"give a smaller one, with --train-batch-size {ctx.plan.rows_per_step} to keep the "
        "rows of a step, or --gradient-checkpointing True",
    )
