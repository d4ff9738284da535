"""``fit --dry-run``: what a run would do and need, as a table, before anyone pays for it.

Read are the prepared folder's lengths and the model's config, no weights; nothing is written. The
number of processes is the launcher's, so ``WORLD_SIZE=8 duet fit --dry-run …`` tells of eight.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.config import FitConfig
from pipeline.console.units import counted, duration, memory_size
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import micro_batcher_for
from pipeline.fit.data.prepared import open_data
from pipeline.fit.data.sampler import BatchSampler, IntArray
from pipeline.fit.distributed.fsdp import sharding_of
from pipeline.fit.estimate.memory import Memory, training_memory
from pipeline.fit.estimate.step_costs import StepCosts, cost_of_steps
from pipeline.fit.flops import training_passes
from pipeline.fit.model.checks import check_model
from pipeline.fit.model.loading import model_structure
from pipeline.fit.schedule import RunPlan, plan_run
from pipeline.fit.training.throughput import matmul_peak
from pipeline.store.summary import table_row

SHARE_OF_PEAK = 0.4
"""Of the matmul peak that training is taken to reach; public runs of T5 show a little less."""
_ROWS_LOOKED_AT = 65_536
_STEPS_LOOKED_AT = 32


def dry_run(config: FitConfig, processes: int = 1, peak: float | None = None) -> Iterator[str]:
    """Yield the lines of the table, for a run on so many processes; ``peak`` is measured if None.

    Raises:
        DuetError: What ``fit`` would raise before it reads the weights.
    """
    data = open_data(config)
    plan = plan_run(
        config.steps,
        num_rows=data.train.rows_per_epoch,
        eval_rows=data.eval_rows,
        processes=processes,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = config.model
    check_model(
        settings,
        data.tokenizer,
        longest=data.longest_rows,
        any_template=data.has_chosen_template,
    )
    model = model_structure(settings, data.tokenizer)
    micro_batcher = micro_batcher_for(
        data.train,
        model.config,
        config.per_device_train_batch_size,
        device,
        compiled=config.torch_compile,
    )
    steps = BatchSampler(
        *data.train.lengths,
        global_batch_size=plan.global_batch_size,
        seed=config.seed,
        group_by_length=config.group_by_length,
        epoch_rows=data.train.epoch_rows,
    )
    looked_at = steps_looked_at(plan)
    costs = cost_of_steps(map(steps.rows_of, looked_at), micro_batcher, processes)
    sharding = sharding_of(config, processes)
    memory = training_memory(
        model, settings, config.optim, costs.largest, sharding=sharding, processes=processes
    )
    yield from _plan(plan, data.train, data.train.epoch_rows(config.seed, 0), data.eval_rows)
    if config.eval_samples:
        yield table_row(
            "sample answers",
            config.eval_samples,
            f"per eval set and evaluation, each of up to {data.target_length:,} tokens",
        )
    yield from _padding(plan, costs, processes, config.group_by_length, config.auto_batch_size)
    yield from _memory(memory)
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    yield from _time(plan, costs, config, device, dtype, peak or matmul_peak(device, dtype))


def steps_looked_at(plan: RunPlan) -> list[int]:
    """Return the steps of the first epoch whose cut is worked out: all, or enough to tell."""
    there = min(plan.steps_per_epoch, plan.total_steps)
    count = min(there, max(_ROWS_LOOKED_AT // plan.global_batch_size, _STEPS_LOOKED_AT))
    return [int(step) for step in np.linspace(0, there - 1, count)]


def _plan(plan: RunPlan, train: SupervisedDataset, rows: IntArray, eval_rows: int) -> Iterator[str]:
    encoder, decoder = (int(side[rows].sum()) for side in train.lengths)
    yield table_row("examples", len(rows), f"for training; {eval_rows:,} for evaluation")
    yield table_row("global batch size", plan.global_batch_size, plan.rows_source)
    epochs = plan.epoch_at(plan.total_steps)
    yield table_row("steps", plan.total_steps, f"{epochs:g} epochs of {plan.steps_per_epoch:,}")
    yield table_row("encoder tokens", encoder, "per epoch, without padding")
    yield table_row("decoder tokens", decoder)


def _padding(
    plan: RunPlan, costs: StepCosts, processes: int, group_by_length: bool, auto_batch_size: bool
) -> Iterator[str]:
    there = min(plan.steps_per_epoch, plan.total_steps)
    seen = "" if costs.steps == there else f"; in {counted(costs.steps, 'step')} of the first epoch"
    grouped = "on" if group_by_length else "off"
    share = 1 - costs.useful / costs.padded
    yield table_row(
        "padding", f"{share:.1%}", f"of the operations, --group-by-length {grouped}{seen}"
    )
    if processes > 1:
        more = costs.slowest * processes / costs.padded - 1
        yield table_row("imbalance", f"{more:.1%}", "more for the slowest process than on average")
    yield table_row("micro-batches", f"{costs.rounds / costs.steps:.2f}", "per step and process")
    rows, encoder, decoder = costs.largest
    size = f"{rows:,} x {encoder:,} x {decoder:,}"
    remark = f"examples x encoder x decoder tokens{seen}"
    if auto_batch_size:
        remark += "; on a GPU --auto-batch-size may find another"
    yield table_row("largest micro-batch", size, remark)


def _memory(memory: Memory) -> Iterator[str]:
    remarks = {
        "activations": "of the largest micro-batch, estimated; more on a CPU",
        "loss": "of the largest micro-batch, at most",
        "update": "of the largest matrix, after activations and loss are freed",
    }
    for field in dataclasses.fields(memory):
        size = getattr(memory, field.name)
        if field.name == "update" and not size:
            continue
        yield table_row(field.name, memory_size(size), remarks.get(field.name, ""))
    yield table_row("memory", memory_size(memory.total), "per device, estimated")


def _time(
    plan: RunPlan,
    costs: StepCosts,
    config: FitConfig,
    device: torch.device,
    dtype: torch.dtype,
    peak: float,
) -> Iterator[str]:
    passes = training_passes(adapted=config.lora_r > 0)
    steps = plan.total_steps / costs.steps
    useful = costs.useful * passes * steps
    hours = f"operations without padding: {duration(useful / 1e14)} at 100 TFLOP/s on one device"
    yield table_row("compute", f"{useful:.3g}", hours)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    kind = str(dtype).removeprefix("torch.")
    yield table_row("matmul peak", f"{peak / 1e12:.3g}", f"TFLOP/s, measured on {name} in {kind}")
    passes += int(config.gradient_checkpointing)  # each layer's forward pass once more
    seconds = costs.slowest * passes * steps / (SHARE_OF_PEAK * peak)
    remark = f"if {SHARE_OF_PEAK:.0%} of that peak is reached (model FLOPs utilization, MFU)"
    yield table_row("time", duration(seconds), remark)
