"""One optimizer step: forward and backward passes, the clipped gradient, the update.

A step is the same on any number of processes and however its rows are cut: its loss is the sum
of its token losses over its target tokens, on all processes. The number of target tokens is
known from the rows' lengths, so no process has to ask another before the backward pass.
"""

import contextlib
import math
import signal
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import StepFeed, to_device
from pipeline.fit.distributed.ddp import keeps_gradients
from pipeline.fit.distributed.fsdp import full_tensor
from pipeline.fit.distributed.signals import StopRequest, asked_for
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


class TrainingStep:
    """Takes one optimizer step on given batches.

    Args:
        accelerator: accelerate's Accelerator.
        model: With its loss, and prepared by accelerate already.
        optimizer: On the model's parameters.
        schedule: The optimizer's learning rate at each step.
        dataset: What the rows of the batches are from; its conversations are named in errors.
        stop: Whether this process was asked to stop.
        max_grad_norm: The gradient is clipped to this total norm; 0: not.
    """

    def __init__(
        self,
        accelerator: Any,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        *,
        dataset: SupervisedDataset,
        stop: StopRequest,
        max_grad_norm: float,
    ) -> None:
        self._accelerator, self._model = accelerator, model
        self._optimizer, self._schedule = optimizer, schedule
        self._dataset, self._stop = dataset, stop
        self._max_grad_norm = max_grad_norm

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
        self._optimizer.zero_grad(set_to_none=not keeps_gradients(self._model))
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
        limit = self._max_grad_norm or math.inf
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), limit)
        return float(full_tensor(norm))
