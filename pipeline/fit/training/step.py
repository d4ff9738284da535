"""One optimizer step: forward and backward passes, the clipped gradient, the update.

A step is the same on any number of processes and however its rows are cut: its loss is the sum
of its token losses over its target tokens, on all processes. The number of target tokens is
known from the rows' lengths, so no process has to ask another before the backward pass.

On a GPU what a step found out is read when the next one is launched, so that the device always has
work. A loss or gradient that is no finite number keeps the device from changing anything by itself;
the error comes one step later.
"""

import contextlib
import math
import signal
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import StepBatch, to_device
from pipeline.fit.distributed.fsdp import full_tensor
from pipeline.fit.distributed.launch import keeps_gradients
from pipeline.fit.distributed.signals import GracefulShutdown, asked_for
from pipeline.fit.training.nonfinite import diverged, rows_without_loss


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


class PendingStep:
    """A step that was launched, and that the device may still be working on.

    Args:
        values: Loss, signals, gradient norm, on the device: float32[values].
        feed: The step's batches.
        step: Its number.
        losses: Those of this process's micro-batches.
        learning_rate: The rate that the step uses.
        dataset: What the rows of the batches are from.
    """

    def __init__(
        self,
        values: torch.Tensor,
        feed: StepBatch,
        step: int,
        losses: list[torch.Tensor],
        learning_rate: float,
        dataset: SupervisedDataset,
    ) -> None:
        self.feed, self.step = feed, step
        self._losses, self._rate, self._dataset = losses, learning_rate, dataset
        # Into pinned memory; the event tells when it is there, whatever is launched after it.
        self._values = values.to("cpu", non_blocking=True)
        event: Any = torch.cuda.Event
        self._copied = event() if values.device.type == "cuda" else None
        if self._copied is not None:
            self._copied.record()

    def result(self) -> StepResult:
        """Return what the step found out, as soon as it is known.

        Raises:
            ModelError: Loss or gradient is no finite number; the weights are as before the step.
        """
        if self._copied is not None:
            self._copied.synchronize()
        loss, *signals, norm = self._values.tolist()
        tokens = self.feed.target_tokens
        if not math.isfinite(loss):
            nonfinite = rows_without_loss(self.feed.parts, self._losses, self._dataset)
            raise diverged(self.step, f"loss {loss / max(tokens, 1):.4g}{nonfinite}")
        if not math.isfinite(norm):
            raise diverged(self.step, f"loss {loss / max(tokens, 1):.4g}, grad norm {norm:.4g}")
        return StepResult(
            loss=loss,
            tokens=tokens,
            grad_norm=norm,
            learning_rate=self._rate,
            stop=asked_for(signals),
        )


@dataclass(kw_only=True, slots=True)
class TrainingStep:
    """Takes one optimizer step on given batches."""

    accelerator: Any
    model: torch.nn.Module
    """With its loss, and prepared by accelerate already."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    dataset: SupervisedDataset
    """What the rows of the batches are from; its conversations are named in errors."""
    stop: GracefulShutdown
    max_grad_norm: float
    """The gradient is clipped to this total norm; 0: not."""
    late: bool = False
    """Launch steps without waiting for the device: see ``can_read_late``."""
    _nonfinite: torch.Tensor | None = None

    def launch(self, feed: StepBatch, step: int) -> PendingStep:
        """Train on the batches of a step; where ``late``, without waiting for the device.

        Raises:
            ModelError: See ``PendingStep.result``; of this step only if not ``late``.
        """
        losses = self._backward(feed)
        values = torch.cat([self._sum(losses), self._clip()[None]])
        rate = float(self.schedule.get_last_lr()[0])
        pending = PendingStep(values, feed, step, losses, rate, self.dataset)
        if self.late:
            self._skip_if_nonfinite(values)
        else:
            pending.result()
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):  # that of a rate that float32 cannot hold
                raise
            raise diverged(step, error) from error
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=not keeps_gradients(self.model))
        return pending

    def _skip_if_nonfinite(self, values: torch.Tensor) -> None:
        """Let the optimizer leave weights and moments as they are, from a nonfinite step on.

        The device decides, by the flag that a fused optimizer has for mixed precision. It stays:
        steps that were launched before the host has read of it must change nothing either.
        """
        nonfinite = ~(values[0].isfinite() & values[-1].isfinite())
        self._nonfinite = nonfinite if self._nonfinite is None else self._nonfinite | nonfinite
        self.optimizer.found_inf = self._nonfinite.float()  # type: ignore[attr-defined]

    def _backward(self, feed: StepBatch) -> list[torch.Tensor]:
        """Leave the gradient of the step's mean token loss; return each micro-batch's sum."""
        accelerator, model = self.accelerator, self.model
        # DistributedDataParallel takes the mean over processes, and accelerate divides by an
        # accumulation that its launcher may have set: both are undone.
        scale = accelerator.num_processes * accelerator.gradient_accumulation_steps
        scale /= max(feed.target_tokens, 1)
        losses = []
        for i, batch in enumerate(feed.batches):
            last = i == len(feed.batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss = model(**to_device(batch, accelerator.device))
                accelerator.backward(loss * scale)
            losses.append(loss.detach())
        return losses

    def _sum(self, losses: list[torch.Tensor]) -> torch.Tensor:
        """Return the loss of all processes, and how many of them got each signal."""
        flags = self.stop.flags()
        values = torch.zeros(1 + len(flags), device=self.accelerator.device)
        values[0] = sum(losses, start=values[0])
        for i, flag in enumerate(flags, 1):
            if flag:  # a tensor made of the list would wait for the device
                values[i] = flag
        summed: torch.Tensor = self.accelerator.reduce(values, reduction="sum")
        return summed

    def _clip(self) -> torch.Tensor:
        """Clip the gradient; return its total norm before."""
        limit = self.max_grad_norm or math.inf
        return full_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))


def can_read_late(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Return whether steps are launched before the last one's result is read.

    On a CPU nothing runs ahead. Of the optimizers, the fused ones can be told on the device to
    leave everything as it is.
    """
    return device.type == "cuda" and all(group.get("fused") for group in optimizer.param_groups)
