"""The optimizer steps of a run, and what happens between them.

A step is the same on any number of processes and however its rows are cut: its loss is the sum
of its token losses over its target tokens, on all processes. The number of target tokens is
known from the rows' lengths, so no process has to ask another before the backward pass.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.config import FitConfig
from pipeline.fit.checkpoint.checkpointer import Saver
from pipeline.fit.checkpoint.train_state import RunState, Sums
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import Feeder, StepFeed, to_device
from pipeline.fit.data.sampler import StepPlan
from pipeline.fit.distributed.fsdp import full_tensor
from pipeline.fit.distributed.signals import StopRequest, asked_for
from pipeline.fit.schedule import RunPlan
from pipeline.fit.training.logging import Reporter
from pipeline.fit.training.nonfinite import diverged, rows_without_loss
from pipeline.fit.training.throughput import Meter


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step found out."""

    loss: float
    """Sum of the token losses over all processes, before the step."""
    tokens: int
    """Target tokens."""
    grad_norm: float
    """Total norm of the gradient before clipping."""
    learning_rate: float
    """The rate that the step used."""
    stop: signal.Signals | None = None
    """The signal by which a process was asked to stop; the same on all of them."""


class TrainingStep:
    """Takes one optimizer step on given batches."""

    def __init__(
        self,
        config: FitConfig,
        accelerator: Any,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        dataset: SupervisedDataset,
        stop: StopRequest,
    ) -> None:
        """Take everything as it is: ``model``, with its loss, is prepared by accelerate already.

        ``dataset`` is what the rows of the feeds are from; its conversations are named in faults.
        """
        self._config, self._accelerator, self._model = config, accelerator, model
        self._optimizer, self._schedule = optimizer, schedule
        self._dataset, self._stop = dataset, stop

    def __call__(self, feed: StepFeed, step: int) -> StepResult:
        """Train on the batches of a step.

        Raises:
            ModelError: Loss or gradient is no finite number; the weights are as before the step.
        """
        tokens = feed.target_tokens
        losses = self._backward(feed, tokens)
        loss, stop = self._sum(losses)
        if not math.isfinite(loss):
            culprits = rows_without_loss(feed.parts, losses, self._dataset)
            raise diverged(step, f"loss {loss / max(tokens, 1):.4g}{culprits}")
        grad_norm = self._clip()
        if not math.isfinite(grad_norm):
            raise diverged(step, f"loss {loss / max(tokens, 1):.4g}, grad norm {grad_norm:.4g}")
        rate = float(self._schedule.get_last_lr()[0])
        try:
            self._optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):  # that of a rate that float32 cannot hold
                raise
            raise diverged(step, error) from error
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(
            loss=loss, tokens=tokens, grad_norm=grad_norm, learning_rate=rate, stop=stop
        )

    def _backward(self, feed: StepFeed, tokens: int) -> list[torch.Tensor]:
        """Leave the gradient of the step's mean token loss; return each micro-batch's sum."""
        accelerator, model = self._accelerator, self._model
        # DistributedDataParallel takes the mean over processes, and accelerate divides by an
        # accumulation that its launcher may have set: both are undone.
        scale = accelerator.num_processes * accelerator.gradient_accumulation_steps / max(tokens, 1)
        losses = []
        for i, batch in enumerate(feed.batches):
            last = i == len(feed.batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss = model(**to_device(batch, accelerator.device))
                accelerator.backward(loss * scale)
            losses.append(loss.detach())
        return losses

    def _sum(self, losses: list[torch.Tensor]) -> tuple[float, signal.Signals | None]:
        """Return the loss of all processes, and the signal that one of them got."""
        device = self._accelerator.device
        total = sum(losses, start=torch.zeros((), device=device))
        flags = torch.tensor(self._stop.flags(), device=device)
        values = torch.cat([total[None], flags])
        summed = self._accelerator.reduce(values, reduction="sum").cpu()
        return float(summed[0]), asked_for(summed[1:])

    def _clip(self) -> float:
        """Clip the gradient; return its total norm before."""
        limit = self._config.max_grad_norm or math.inf
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), limit)
        return float(full_tensor(norm))


class TrainingLoop:
    """Runs the steps that are left, and logs, evaluates and saves when it is due."""

    def __init__(
        self,
        plan: RunPlan,
        steps: StepPlan,
        state: RunState,
        feeder: Feeder,
        take_step: TrainingStep,
        evaluate: Callable[[], dict[str, float] | signal.Signals],
        save: Saver,
        meter: Meter,
        reporter: Reporter,
    ) -> None:
        """``state`` is kept up to date in place.

        Args:
            plan: When what is due.
            steps: The rows of each step.
            state: Where the run stands.
            feeder: Makes batches of them.
            take_step: Trains on the batches of a step.
            evaluate: Returns the values of an evaluation, or the signal that ended it.
            save: Saves a checkpoint of ``state``.
            meter: Measures the steps.
            reporter: Shows what happens.
        """
        self._plan, self._steps, self._state = plan, steps, state
        self._feeder, self._take_step = feeder, take_step
        self._evaluate, self._save = evaluate, save
        self._meter, self._reporter = meter, reporter

    def run(self) -> signal.Signals | None:
        """Take the steps that are left.

        Returns:
            None after the last step; before it, the signal that stopped the run, which is saved.
        """
        plan, state = self._plan, self._state
        start, before = time.perf_counter(), state.seconds
        if stop := self._evaluate_if_due():
            return stop  # nothing is new since the checkpoint
        rows = map(self._steps.rows_of, range(state.step, plan.total_steps))
        self._meter.resume()
        with self._feeder.ahead(rows) as feeds:
            for step, feed in enumerate(feeds, state.step + 1):
                result = self._take_step(feed, step)
                self._count(feed, result)
                self._save.check()
                self._reporter.step_done(
                    step, result.loss / max(result.tokens, 1), result.learning_rate
                )
                if plan.due(plan.logging, step):
                    self._log(result)
                state.evaluation_is_due = plan.due(plan.evaluation, step)
                unfinished = step < plan.total_steps or state.evaluation_is_due
                stop = (result.stop if unfinished else None) or self._evaluate_if_due()
                state.seconds = before + time.perf_counter() - start
                if plan.due(plan.saving, step) or stop:
                    self._save()
                if stop:
                    return stop
                self._meter.resume()
        state.seconds = before + time.perf_counter() - start
        return None

    def _evaluate_if_due(self) -> signal.Signals | None:
        """Evaluate; of a run that is asked to stop meanwhile, the resumed one does it."""
        if not (self._state.evaluation_is_due and self._plan.evaluation):
            return None
        found = self._evaluate()
        if isinstance(found, signal.Signals):
            return found
        self._state.evaluation_is_due = False
        self._enter(found)
        return None

    def finish(self) -> None:
        """Log the summary of the whole run."""
        state = self._state
        seconds = max(state.seconds, 1e-9)
        self._enter(
            {
                "train_runtime": state.seconds,
                "train_samples_per_second": state.rows_seen / seconds,
                "train_steps_per_second": state.step / seconds,
                "train_loss": state.whole.mean(),
            }
        )

    def _count(self, feed: StepFeed, result: StepResult) -> None:
        state = self._state
        state.step += 1
        state.rows_seen += len(feed.rows)
        state.tokens_seen += feed.encoder_tokens + result.tokens
        for sums in (state.window, state.whole):
            sums.add(result.loss, result.tokens)
        self._meter.step(
            target_tokens=result.tokens,
            useful_flops=feed.useful_flops,
            padded_flops=feed.padded_flops,
            waited=self._feeder.waited,
        )

    def _log(self, result: StepResult) -> None:
        """Enter what is known of the steps since the last entry; ``loss`` by target tokens."""
        self._enter(
            {
                "loss": self._state.window.mean(),
                "grad_norm": result.grad_norm,
                "learning_rate": result.learning_rate,
            }
            | self._meter.read(self._state.step)
        )
        self._state.window = Sums()

    def _enter(self, values: dict[str, float]) -> None:
        state = self._state
        entry = values | {"epoch": self._plan.epoch_at(state.step), "step": state.step}
        state.log.append(entry)
        self._reporter.entry(entry)
