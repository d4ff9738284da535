"""One sitting of a run, in reading order: model, optimizer, train, save."""

import math
import signal
from typing import Any

import torch

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
from pipeline.fit.data.sampler import StepPlan
from pipeline.fit.distributed.fsdp import init_sharded_moments, shard, shard_optimizer_state
from pipeline.fit.distributed.host_group import HostGroup
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
from pipeline.fit.model.compile import (
    compile_layers,
)
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.training.evaluate import Evaluator
from pipeline.fit.training.logging import Reporter, start_trackers
from pipeline.fit.training.loop import TrainingLoop, TrainingStep
from pipeline.fit.training.optim import make_optimizer, make_schedule, take_over
from pipeline.fit.training.throughput import Meter
from pipeline.logs import note


class Run:
    """One sitting of a run, from the model to the trained folder."""

    def __init__(self, ctx: RunContext, checkpoint: Checkpoint | None) -> None:
        """Load or make everything that changes while training."""
        self._ctx, config, plan = ctx, ctx.config, ctx.plan
        self._state = checkpoint.state if checkpoint is not None else RunState()
        # Now, not at the end: nothing in it may fail once the training is done.
        self._facts = run_facts(ctx)
        note(f"rows per step {plan.rows_per_step} {plan.rows_source}")
        self._model = self._load_model(checkpoint)
        self._wrapped = self._wrap(SummedTokenLoss(self._model))
        if config.torch_compile:
            compile_layers(self._model)
        self._optimizer = make_optimizer(self._model, config)
        init_sharded_moments(self._optimizer)
        self._schedule = make_schedule(self._optimizer, config, plan.total_steps)
        self._stop, self._hosts = StopRequest(), HostGroup.join()
        self._evaluator: Evaluator | None = None
        self._max_rows = self._find_max_rows()
        self._restore(checkpoint)
        self._saver = Saver(ctx, self._wrapped, self._optimizer, self._schedule, self._state)

    def run(self) -> signal.Signals | None:
        """Train, and write the trained folder; return the signal that stopped it before."""
        with self._saver:
            return self._run()

    def _run(self) -> signal.Signals | None:
        ctx, state = self._ctx, self._state
        start_trackers(ctx.config, ctx.accelerator)
        with Reporter(ctx.accelerator, ctx.plan.total_steps, state.step) as reporter:
            self._wrapped.train()
            steps, feeder = self._steps(), self._feeder()
            self._probe(steps, feeder.cutter)
            tokens = feeder.cutter.multiple
            eos_id = ctx.data.tokenizer.eos_id
            warm_up_ddp_buckets(self._wrapped, ctx.accelerator, Shape(1, tokens, tokens), eos_id)
            loop = self._loop(steps, feeder, reporter)
            with self._stop:
                stop = loop.run()
                self._saver.wait()
            if stop is not None:
                self._say_how_to_go_on(stop)
                return stop
            loop.finish()
        self._saver.write_trained(self._facts)
        return None

    def _say_how_to_go_on(self, stop: signal.Signals) -> None:
        step, total = self._state.step, self._ctx.plan.total_steps
        note(
            f"{stop.name}: stopped after step {step} of {total}, saved as checkpoint-{step}; "
            "the same command goes on from there"
        )

    def _load_model(self, checkpoint: Checkpoint | None) -> Any:
        config, tokenizer = self._ctx.config, self._ctx.data.tokenizer
        if checkpoint is None:
            return build_model(config.model, tokenizer, say=note)
        note(f"going on from {checkpoint.folder.name}")
        try:
            return build_model(config.model, tokenizer, checkpoint=checkpoint.folder)
        except ModelError as error:
            raise damaged(checkpoint.folder, error) from error

    def _wrap(self, model: SummedTokenLoss) -> torch.nn.Module:
        """Return the model as the processes train it: shared out, or whole in each."""
        ctx = self._ctx
        if ctx.sharding is not None:
            return shard(model, ctx.sharding, ctx.accelerator)
        wrapped: torch.nn.Module = ctx.accelerator.prepare_model(model)
        return wrapped

    def _find_max_rows(self) -> int:
        """Return how many rows of full length a micro-batch may have."""
        ctx, given = self._ctx, self._ctx.config.per_device_train_batch_size
        accelerator, plan = ctx.accelerator, ctx.plan
        if not ctx.config.auto_batch_size:
            return given
        if accelerator.device.type != "cuda":
            note("--auto-batch-size means nothing on this device; ignored")
            return given
        found = self._memory_probe().find_batch_size(
            longest=self._cutter(ctx.data.train, given).fullest,
            limit=math.ceil(plan.rows_per_step / accelerator.num_processes),
        )
        note(f"--auto-batch-size: {found} rows of full length at once")
        return found

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Put optimizer, schedule and generators where the checkpoint has them, or seed them."""
        from accelerate.utils import set_seed

        accelerator = self._ctx.accelerator
        # Device-specific: each process draws dropout of its own.
        set_seed(self._ctx.config.seed + self._state.step, device_specific=True)
        if checkpoint is None:
            return
        try:
            mapped = self._ctx.sharding is not None
            optimizer = checkpoint.load("optimizer.pt", mapped=mapped)
            optimizer = shard_optimizer_state(self._optimizer, optimizer)
            if checkpoint.differences(self._ctx.identity):
                take_over(self._optimizer, self._schedule, optimizer, self._state.step)
            else:
                self._optimizer.load_state_dict(optimizer)
                self._schedule.load_state_dict(checkpoint.load("scheduler.pt"))
            if self._schedule.last_epoch != self._state.step:
                raise ValueError("the schedule is at another step")
            if checkpoint.processes == accelerator.num_processes:
                restore_rng_state(checkpoint.rng_state(accelerator.process_index))
            else:
                note(_on_other_processes(checkpoint, self._ctx))
        except (DuetError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # states of a wrong shape fail wherever they are first used
            raise damaged(checkpoint.folder, error) from error

    def _steps(self) -> StepPlan:
        ctx = self._ctx
        return StepPlan(
            *ctx.data.train.lengths,
            rows_per_step=ctx.plan.rows_per_step,
            seed=ctx.config.seed,
            group_by_length=ctx.config.group_by_length,
        )

    def _feeder(self) -> Feeder:
        ctx = self._ctx
        return Feeder(
            ctx.data.train,
            self._cutter(ctx.data.train, self._max_rows),
            self._model.config.pad_token_id,
            ctx.accelerator,
        )

    def _probe(self, steps: StepPlan, cutter: Cutter) -> None:
        """Run the biggest micro-batches of the run before its first step, where that pays off.

        Raises:
            ConfigError: One does not fit.
        """
        ctx, plan, first = self._ctx, self._ctx.plan, self._state.step
        if not (pays_off(ctx.accelerator.device) and can_probe(self._wrapped)):
            return
        left = range(first, min(plan.total_steps, first + MOST_ROWS // plan.rows_per_step + 1))
        processes = ctx.accelerator.num_processes
        cut = (cutter.deal(steps.rows_of(step), processes) for step in left)
        parts = (rows for dealt in cut for parts in dealt for rows in parts if len(rows))
        shapes = biggest(map(cutter.shape, parts), cutter.flops)
        failed = self._memory_probe().too_big(shapes)
        if failed is not None:
            raise out_of_memory(ctx, failed)
        note(f"the biggest micro-batch fits: {' or '.join(map(str, shapes))}")

    def _memory_probe(self) -> MemoryProbe:
        """Return what tries micro-batches beside the optimizer's values, which may not be there."""
        ctx = self._ctx
        unmade = 0 if self._optimizer.state else optimizer_bytes(self._model, ctx.config)
        if ctx.sharding is not None:  # each process has its shard of the values
            unmade //= ctx.accelerator.num_processes
        return MemoryProbe(
            self._wrapped,
            ctx.accelerator,
            token_id=ctx.data.tokenizer.eos_id,
            reserved=unmade,
        )

    def _loop(self, steps: StepPlan, feeder: Feeder, reporter: Reporter) -> TrainingLoop:
        ctx, plan = self._ctx, self._ctx.plan
        take_step = TrainingStep(
            ctx.config,
            ctx.accelerator,
            self._wrapped,
            self._optimizer,
            self._schedule,
            ctx.data.train,
            self._stop,
        )
        meter = Meter(
            device=ctx.accelerator.device,
            dtype=torch.bfloat16 if ctx.config.bf16 else torch.float32,
            processes=ctx.accelerator.num_processes,
            total_steps=plan.total_steps,
            first_step=self._state.step,
            passes=training_passes(adapted=bool(ctx.config.lora_r)),
        )
        return TrainingLoop(
            plan,
            steps,
            self._state,
            feeder,
            take_step,
            self._evaluate,
            self._saver,
            meter,
            reporter,
        )

    def _cutter(self, dataset: SupervisedDataset, max_rows: int) -> Cutter:
        return cutter_for(
            dataset,
            self._model.config,
            max_rows,
            self._ctx.accelerator.device,
            compiled=self._ctx.config.torch_compile,
        )

    def _evaluate(self) -> dict[str, float] | signal.Signals:
        ctx = self._ctx
        if self._evaluator is None:
            assert ctx.data.eval is not None, "the plan has evaluations only with a split"
            self._evaluator = Evaluator(
                ctx.data.eval,
                self._cutter(ctx.data.eval, ctx.config.per_device_eval_batch_size),
                self._model.config.pad_token_id,
                ctx.data.tokenizer,
                ctx.accelerator,
            )
        return self._evaluator.run(self._wrapped, lambda: self._stop.agreed(self._hosts))


def _on_other_processes(checkpoint: Checkpoint, ctx: RunContext) -> str:
    """Return what changes, and what does not, in a run that other processes began."""
    now, before = ctx.accelerator.num_processes, checkpoint.processes
    return (
        f"begun on {before} process{'es' * (before > 1)}, going on on {now}: a step takes "
        f"{ctx.plan.rows_per_step} rows as before, cut into other micro-batches; dropout is "
        "drawn anew"
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
