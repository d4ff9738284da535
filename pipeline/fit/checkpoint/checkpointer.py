"""Saves a run: checkpoints while the steps go on, the trained folder at the end.

The steps are held while the state is copied (``snapshot.py``), on all processes. A thread of the
main process then writes, and the next save, the end, a signal or a fault wait for it. What it fails
with is raised after the step that is under way.
"""

import copy
import functools
import json
import time
from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from pipeline.errors import DuetError
from pipeline.fit.checkpoint.background import Background
from pipeline.fit.checkpoint.format import delete_oldest, write_checkpoint
from pipeline.fit.checkpoint.model_card import model_card, write_card
from pipeline.fit.checkpoint.pretrained import write_trained
from pipeline.fit.checkpoint.rng import rng_state
from pipeline.fit.checkpoint.staging import copy_state, copy_weights
from pipeline.fit.checkpoint.train_state import RunState, trainer_state_json
from pipeline.fit.context import RunContext
from pipeline.fit.distributed.fsdp import local_shard, resharded
from pipeline.fit.training.nonfinite import diverged
from pipeline.logs import note


class Saver:
    """Saves what a run has come to; a context that ends when everything is written."""

    def __init__(
        self,
        ctx: RunContext,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        state: RunState,
    ) -> None:
        """Nothing is saved yet.

        Args:
            ctx: The run.
            wrapped: The model with its loss, as it is trained.
            optimizer: Its optimizer.
            schedule: Its schedule.
            state: Where the run stands; kept up to date by the loop.
        """
        self._ctx, self._wrapped, self._state = ctx, wrapped, state
        self._optimizer, self._schedule = optimizer, schedule
        self._model = ctx.accelerator.unwrap_model(wrapped).model
        self._main = bool(ctx.accelerator.is_main_process)
        self._background = Background()
        self._held = 0.0
        """Seconds that the steps were held for the last checkpoint."""
        self._written: tuple[str, float] | None = None
        """A checkpoint that is written and not yet spoken of, with the seconds it took."""

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; after another fault its own is only noted."""
        try:
            if kind is None:
                self.wait()
            else:
                self._note_fault()
        finally:
            self._background.close()

    def _note_fault(self) -> None:
        try:
            self.wait()
        except DuetError as error:
            note(f"and the checkpoint before was not written: {error}")

    def check(self) -> None:
        """Raise what a thread failed with, and say which checkpoints are written; wait for none."""
        self._background.check()
        self._tell()

    def wait(self) -> None:
        """Wait until what was saved is written.

        Raises:
            OutputError: It could not be.
        """
        self._background.wait()
        self._tell()

    def __call__(self) -> None:
        """Save a checkpoint: copy the state, and start writing it.

        Raises:
            ModelError: A weight is infinite or NaN.
            OutputError: The checkpoint before could not be written.
        """
        began = time.perf_counter()
        self.wait()
        self._check_weights()
        write, step = self._copy(), self._state.step
        if self._main:
            self._background.start(lambda: self._write(write, step))
            self._held = time.perf_counter() - began

    def _copy(self) -> Callable[[], object]:
        """Copy what changes while training; return what writes the copy in the main process."""
        from accelerate.utils import gather_object

        return functools.partial(
            write_checkpoint,
            self._ctx.output,
            model=self._model,
            weights=copy_weights(self._model, keep=self._main),
            tokenizer=self._ctx.data.tokenizer_folder,
            optimizer=copy_state(self._optimizer.state_dict(), keep=self._main),
            schedule=copy_state(self._schedule.state_dict(), keep=self._main),
            rng_states=gather_object([rng_state()]),
            identity=self._ctx.identity,
            state=copy.deepcopy(self._state),
            trainer_state=self._trainer_state(),
        )

    def _write(self, write: Callable[[], object], step: int) -> None:
        """Write a checkpoint, and then delete those that are too many; the thread runs this."""
        began = time.perf_counter()
        write()
        delete_oldest(self._ctx.output, step, self._ctx.config.save_total_limit)
        self._written = f"checkpoint-{step}", time.perf_counter() - began

    def _tell(self) -> None:
        """Say that a checkpoint is written, once."""
        if self._written is not None:
            (name, seconds), self._written = self._written, None
            note(f"{name}: steps were held for {self._held:.2f} s, written in {seconds:.2f} s")

    def write_trained(self, facts: str) -> None:
        """Write the trained folder, and wait for it.

        Args:
            facts: The content of ``run.json``.

        Raises:
            ModelError: A weight is infinite or NaN.
            OutputError: The folder, or the checkpoint before, could not be written.
        """
        ctx = self._ctx
        self.wait()
        self._check_weights()
        weights = copy_weights(self._model, keep=self._main)
        if self._main:
            write_trained(
                ctx.output,
                self._model,
                ctx.data.tokenizer_folder,
                weights,
                run=facts,
                trainer_state=self._trainer_state(),
            )
            write_card(ctx.output, model_card(ctx.config, json.loads(facts), self._state))

    def _check_weights(self) -> None:
        """Refuse to save weights that are no numbers; a loss tells only those of the step before.

        Raises:
            ModelError: A weight is infinite or NaN, in the share of any process.
        """
        from accelerate.utils import gather_object

        weights = resharded(self._wrapped).named_parameters()
        found = [name for name, weight in weights if not local_shard(weight).isfinite().all()]
        if found := gather_object(found[:1]):
            name = found[0].rpartition("model.")[2]
            raise diverged(self._state.step, f"{name} with values that are not finite")

    def _trainer_state(self) -> str:
        return trainer_state_json(self._state, self._ctx.plan, self._ctx.config)
