"""The eval split -> ``eval_loss`` and ``eval_bits_per_byte``.

``eval_loss`` is a mean over target tokens, so it falls when a tokenizer cuts the same text into
more tokens. Bits per byte of the text do not: they compare across tokenizers.
"""

import functools
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.console.progress import Wait, advance
from pipeline.fit.data.collate import Batch
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import to_device
from pipeline.fit.data.micro_batches import MicroBatcher
from pipeline.fit.data.sampler import IntArray
from pipeline.tokenizer import TextTokenizer


@dataclass
class Evaluator:
    """Evaluates a model on one split, every row once, on any number of processes alike."""

    dataset: SupervisedDataset
    micro_batcher: MicroBatcher
    """Cuts its rows into batches; not for so many processes: the result does not depend on them."""
    pad_id: int
    """The id that encoder rows are padded with."""
    tokenizer: TextTokenizer
    """The prepared folder's, to decode the targets."""
    accelerator: Any
    name: str = ""
    """In the names of its values, ``eval_NAME_loss``; none for a run's own split."""

    @functools.cached_property
    def _batches(self) -> list[IntArray]:
        return self.micro_batcher.split(np.arange(len(self.dataset), dtype=np.int64))

    @functools.cached_property
    def _bytes(self) -> int:
        return count_target_bytes(self.dataset, self.tokenizer)

    def run(
        self, model: torch.nn.Module, stopped: Callable[[], signal.Signals | None] = lambda: None
    ) -> dict[str, float] | signal.Signals:
        """Return ``eval_loss``, ``eval_bits_per_byte`` and ``eval_runtime`` (seconds).

        What ``stopped`` returns before a batch ends the evaluation, and is returned. All processes
        must get the same answer.
        """
        with Wait(f"reading the eval split {self.name}".rstrip(), unit="rows"):
            tokens, num_bytes = int(self.dataset.lengths[1].sum()), self._bytes
        start = time.perf_counter()
        was_training = model.training
        model.eval()
        with Wait(f"evaluating {self.name}".rstrip(), unit="batches") as wait:
            total = self._summed_loss(model, stopped, wait)
        model.train(was_training)
        if isinstance(total, signal.Signals):
            return total
        values = {
            "loss": total / max(tokens, 1),
            "bits_per_byte": total / math.log(2) / max(num_bytes, 1),
            "runtime": time.perf_counter() - start,
        }
        prefix = f"eval_{self.name}_" if self.name else "eval_"
        return {prefix + name: value for name, value in values.items()}

    @torch.no_grad()
    def _summed_loss(
        self, model: torch.nn.Module, stopped: Callable[[], signal.Signals | None], wait: Wait
    ) -> float | signal.Signals:
        accelerator = self.accelerator
        # One place for each batch, and each place filled by one process: the sum over processes
        # adds zeros only, so the result does not depend on how many there are.
        losses = torch.zeros(len(self._batches), device=accelerator.device)
        rounds = math.ceil(len(losses) / accelerator.num_processes)
        for turn in wait.each(range(rounds)):
            if (stop := stopped()) is not None:
                return stop
            at = turn * accelerator.num_processes + accelerator.process_index
            # A process without a batch runs one all the same: a sharded model needs them all.
            loss = model(**self._batch(at % len(losses)))
            if at < len(losses):
                losses[at] = loss
        summed: torch.Tensor = accelerator.reduce(losses, reduction="sum")
        return float(summed.cpu().double().sum())

    def _batch(self, at: int) -> Batch:
        batch = self.dataset.batch(
            self._batches[at], self.pad_id, multiple=self.micro_batcher.multiple
        )
        return to_device(batch, self.accelerator.device)


def count_target_bytes(dataset: SupervisedDataset, tokenizer: TextTokenizer) -> int:
    """Return the bytes of the UTF-8 text that the split's target tokens decode to."""
    size = 0
    for row in range(len(dataset)):
        size += len(tokenizer.decode(dataset[row]["labels"].tolist()).encode("utf-8"))
        advance(1)
    return size
