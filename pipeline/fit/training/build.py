"""A run's context and checkpoint -> its trainer: model, optimizer, what fits, where it stands."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from pipeline.config.views import ModelSettings, Sharding
from pipeline.console.logs import note
from pipeline.errors import ConfigError, ModelError
from pipeline.fit.checkpoint.checkpointer import Checkpointer, CheckpointSettings
from pipeline.fit.checkpoint.format import Checkpoint, damaged
from pipeline.fit.checkpoint.model_card import run_metadata
from pipeline.fit.checkpoint.pretrained import MAX_SHARD_BYTES
from pipeline.fit.checkpoint.restoring import restore
from pipeline.fit.checkpoint.train_state import RunState, TrainState, trainer_state_json
from pipeline.fit.context import RunContext
from pipeline.fit.data.loader import StepLoader, micro_batcher_for
from pipeline.fit.data.micro_batches import MicroBatcher, Shape
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.distributed.fsdp import init_sharded_moments, shard
from pipeline.fit.distributed.fsdp_alone import can_run_alone
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.load_once import receive_weights
from pipeline.fit.distributed.signals import GracefulShutdown
from pipeline.fit.estimate.memory import optimizer_bytes
from pipeline.fit.estimate.memory_probe import (
    MOST_ROWS,
    MemoryProbe,
    biggest,
    warm_up_ddp_buckets,
)
from pipeline.fit.flops import training_passes
from pipeline.fit.model.checks import check_writes
from pipeline.fit.model.fast_paths.compile import compile_layers
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.model.sizes import most_positions
from pipeline.fit.schedule import RunPlan
from pipeline.fit.training.best_model import BestModelTracker
from pipeline.fit.training.evaluate import Evaluator
from pipeline.fit.training.logging import Reporter
from pipeline.fit.training.optim import make_optimizer, make_schedule
from pipeline.fit.training.samples import EvalSamples
from pipeline.fit.training.step import TrainingStep, can_read_late
from pipeline.fit.training.throughput import ThroughputMeter, data_sheet_of, matmul_peak
from pipeline.fit.training.trackers import Trackers
from pipeline.fit.training.trainer import Trainer, TrainerCallback
from pipeline.tokenizer import TextTokenizer


def build_trainer(
    ctx: RunContext,
    checkpoint: Checkpoint | None,
    checkpointer: Checkpointer,
    hosts: HostGroup,
    *,
    callback: TrainerCallback | None = None,
    probe_memory: bool | None = None,
    compile_backend: str = "inductor",
) -> Trainer:
    """Build what takes the steps of a run, as new or as the checkpoint has it.

    Args:
        ctx: The run.
        checkpoint: What it resumes from.
        checkpointer: Saves it.
        hosts: Its processes.
        callback: Is told what happens.
        probe_memory: Try the biggest micro-batches before the first step; None: where it pays off.
        compile_backend: Of ``torch.compile``, with ``--torch-compile``.

    Raises:
        ConfigError: A micro-batch does not fit, or a setting does not fit the model or the device.
        ModelError: The model cannot be loaded.
        CheckpointError: The checkpoint is damaged.
    """
    from accelerate.utils import set_seed

    config, plan, data, accelerator = ctx.config, ctx.plan, ctx.data, ctx.accelerator
    device, eos_id = accelerator.device, data.tokenizer.eos_id
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    state = checkpoint.state if checkpoint is not None else RunState()
    # Now, not at the end: nothing in it may fail once the training is done.
    metadata = run_metadata(ctx)
    note(f"global batch size {plan.global_batch_size} {plan.rows_source}")

    stop = GracefulShutdown()
    model = _load_model(config.model, data.tokenizer, checkpoint, hosts)
    loss = SummedTokenLoss(model, config.label_smoothing_factor)
    wrapped = _wrap(loss, ctx.sharding, accelerator)
    if config.eval_samples and ctx.sharding is None:
        check_writes(model, "--eval-samples", "leave it out, or train another kind of model")
    if config.torch_compile:
        compile_layers(model, compile_backend)
    optimizer = make_optimizer(model, config.optimizer)
    init_sharded_moments(optimizer)
    schedule = make_schedule(optimizer, config.schedule, plan.total_steps)

    micro_batcher_of = functools.partial(
        micro_batcher_for, config=model.config, device=device, compiled=config.torch_compile
    )
    shards = accelerator.num_processes if ctx.sharding is not None else 1

    def moments_to_come() -> int:
        return 0 if optimizer.state else optimizer_bytes(model, config.optim) // shards

    probe = MemoryProbe(wrapped, accelerator, token_id=eos_id, reserved=moments_to_come)
    max_rows = config.per_device_train_batch_size
    if config.auto_batch_size:
        longest = micro_batcher_of(data.train, max_rows=max_rows).fullest
        max_rows = _find_batch_size(probe, longest, plan, accelerator)
    # Device-specific: each process draws dropout of its own.
    set_seed(config.seed + state.step, device_specific=True)
    if checkpoint is not None:
        restore(checkpoint, optimizer, schedule, ctx.identity, hosts)

    sampler = BatchSampler(
        *data.train.lengths,
        global_batch_size=plan.global_batch_size,
        seed=config.seed,
        group_by_length=config.group_by_length,
        epoch_rows=data.train.epoch_rows,
    )
    micro_batcher = micro_batcher_of(data.train, max_rows=max_rows)
    wrapped.train()
    # On a CPU what does not fit is no error that could be told: the machine swaps, or ends the
    # process; and the trial costs as much as some steps.
    pays = device.type != "cpu" if probe_memory is None else probe_memory
    steps = range(state.step, plan.total_steps)
    if pays and steps and (ctx.sharding is None or can_run_alone()):
        shapes = _biggest_of(steps, sampler, micro_batcher, accelerator.num_processes)
        if (failed := probe.too_big(shapes)) is not None:
            rows = config.per_device_train_batch_size
            raise out_of_memory(rows, plan.global_batch_size, failed)
        note(f"the largest micro-batch fits: {' or '.join(map(str, shapes))}")
    warm_up_ddp_buckets(
        wrapped, accelerator, Shape(1, micro_batcher.multiple, micro_batcher.multiple), eos_id
    )

    to_evaluate = ({"": data.eval} if data.eval is not None else {}) | dict(data.named_eval)
    evaluators = [
        Evaluator(
            dataset,
            micro_batcher_of(dataset, max_rows=config.per_device_eval_batch_size),
            model.config.pad_token_id,
            data.tokenizer,
            accelerator,
            name,
        )
        for name, dataset in to_evaluate.items()
    ]
    return Trainer(
        plan=plan,
        train_state=TrainState(
            model=wrapped, optimizer=optimizer, schedule=schedule, progress=state
        ),
        sampler=sampler,
        loader=StepLoader(data.train, micro_batcher, model.config.pad_token_id, accelerator),
        step=TrainingStep(
            accelerator=accelerator,
            model=wrapped,
            optimizer=optimizer,
            schedule=schedule,
            dataset=data.train,
            stop=stop,
            max_grad_norm=config.max_grad_norm,
            late=can_read_late(optimizer, device),
        ),
        evaluators=evaluators,
        samples=[
            EvalSamples(
                evaluator=evaluator,
                count=config.eval_samples,
                batch_size=config.per_device_eval_batch_size,
                max_new_tokens=min(data.target_length, most_positions(model.config)[1]),
                is_compiled=config.torch_compile,
            )
            for evaluator in (evaluators if config.eval_samples else ())
        ],
        best=BestModelTracker(
            output=ctx.output,
            metric=config.best_metric,
            greater_is_better=bool(config.greater_is_better),
            keeps_best=config.load_best_model_at_end,
            patience=config.early_stopping_patience,
            threshold=config.early_stopping_threshold,
        ),
        checkpointer=checkpointer,
        meter=ThroughputMeter(
            device=device,
            processes=accelerator.num_processes,
            total_steps=plan.total_steps,
            first_step=state.step,
            passes=training_passes(adapted=config.lora_r > 0),
            peak=matmul_peak(device, dtype),
            data_sheet=data_sheet_of(device, dtype),
        ),
        reporter=Reporter(
            Trackers(
                names=config.trackers if accelerator.is_main_process else (),
                output=ctx.output,
                run_name=config.run_name,
                settings=metadata["settings"],
                first_step=state.step,
            ),
            is_main=accelerator.is_main_process,
            total_steps=plan.total_steps,
            log=state.log,
        ),
        stop=stop,
        hosts=hosts,
        run_metadata=metadata,
        callback=callback or TrainerCallback(),
    )


def build_checkpointer(
    ctx: RunContext,
    on_write: Callable[[int], object] = lambda step: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Checkpointer:
    """Build what saves a run, and finds where it stands; all processes must call this."""
    config = ctx.config
    return Checkpointer(
        CheckpointSettings(
            output=ctx.output,
            tokenizer=ctx.data.tokenizer_folder,
            identity=ctx.identity,
            total_steps=ctx.plan.total_steps,
            describe=functools.partial(
                trainer_state_json,
                plan=ctx.plan,
                rows_at_once=config.per_device_train_batch_size,
            ),
            save_total_limit=config.save_total_limit,
            save_only_model=config.save_only_model,
            resume_anyway=config.resume_anyway,
            max_shard_bytes=max_shard_bytes,
            on_write=on_write,
        ),
        HostGroup.join(),
    )


def _load_model(
    settings: ModelSettings,
    tokenizer: TextTokenizer,
    checkpoint: Checkpoint | None,
    hosts: HostGroup,
) -> Any:
    if checkpoint is None:
        return build_model(settings, tokenizer, hosts=hosts)
    note(f"resuming from {checkpoint.folder.name}")
    try:
        return build_model(settings, tokenizer, checkpoint=checkpoint.folder, hosts=hosts)
    except ModelError as error:
        raise damaged(checkpoint.folder, error) from error


def _wrap(model: SummedTokenLoss, sharding: Sharding | None, accelerator: Any) -> torch.nn.Module:
    """Return the model as the processes train it: sharded, or whole in each."""
    if sharding is not None:
        return shard(model, sharding, accelerator)
    receive_weights(model, accelerator.device)
    wrapped: torch.nn.Module = accelerator.prepare_model(model)
    return wrapped


def _find_batch_size(probe: MemoryProbe, longest: Shape, plan: RunPlan, accelerator: Any) -> int:
    """Return how many of the longest examples a micro-batch may have."""
    if accelerator.device.type != "cuda":
        note("--auto-batch-size is ignored: it needs a GPU")
        return longest.rows
    limit = math.ceil(plan.global_batch_size / accelerator.num_processes)
    found = probe.find_batch_size(longest=longest, limit=limit)
    note(f"--auto-batch-size: micro-batches of at most {found} of the longest examples")
    return found


def _biggest_of(
    steps: range, sampler: BatchSampler, micro_batcher: MicroBatcher, processes: int
) -> list[Shape]:
    """Return the shapes of some steps' micro-batches that take most memory."""
    searched = steps[: MOST_ROWS // sampler.global_batch_size + 1]
    cut = (micro_batcher.balance(sampler.rows_of(step), processes) for step in searched)
    parts = (rows for balanced in cut for parts in balanced for rows in parts if len(rows))
    return biggest(map(micro_batcher.shape, parts), micro_batcher.flops)


def out_of_memory(rows: int, global_batch_size: int, shape: Shape | None = None) -> ConfigError:
    """Return the error for a run with so many of the longest examples at once; see ``shape``."""
    return ConfigError(
        "the device is out of memory",
        where="--per-device-train-batch-size",
        got=rows if shape is None else f"{rows}, which makes micro-batches of {shape}",
        do=f"give a smaller one, with --train-batch-size {global_batch_size} to keep the "
        "global batch size, or --gradient-checkpointing True",
    )
