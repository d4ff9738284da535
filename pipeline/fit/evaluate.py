"""The split eval -> ``eval_loss`` and ``eval_bits_per_byte``.

``eval_loss`` is a mean over target tokens, so it falls when a tokenizer cuts the same text into
more tokens. Bits per byte of the text do not: they compare across tokenizers.
"""

import math
import time
from typing import Any

import numpy as np
import torch

from pipeline.fit.batching import cut_by_length
from pipeline.fit.collate import Batch, DataCollatorForSupervisedDataset
from pipeline.fit.dataset import SupervisedDataset
from pipeline.tokenizer import TextTokenizer


class Evaluator:
    """Evaluates a model on one split, every row once, on any number of processes alike."""

    def __init__(
        self,
        dataset: SupervisedDataset,
        collate: DataCollatorForSupervisedDataset,
        tokenizer: TextTokenizer,
        accelerator: Any,
        max_rows: int,
    ) -> None:
        """Plan the batches and count tokens and bytes, once per run.

        Args:
            dataset: The split.
            collate: Makes batches of its rows.
            tokenizer: The prepared folder's, to decode the targets.
            accelerator: accelerate's Accelerator.
            max_rows: Most rows of a batch.
        """
        self._dataset, self._collate, self._accelerator = dataset, collate, accelerator
        encoder, decoder = dataset.lengths
        rows = np.arange(len(dataset), dtype=np.int64)
        self._batches = cut_by_length(rows, encoder, decoder, math.ceil(len(rows) / max_rows))
        self._tokens = int(decoder.sum())
        self._bytes = count_target_bytes(dataset, tokenizer)

    def run(self, model: torch.nn.Module) -> dict[str, float]:
        """Return ``eval_loss``, ``eval_bits_per_byte`` and ``eval_runtime`` (seconds).

        Args:
            model: A ``SummedTokenLoss``, wrapped or not.
        """
        start = time.perf_counter()
        total = self._summed_loss(model)
        return {
            "eval_loss": total / max(self._tokens, 1),
            "eval_bits_per_byte": total / math.log(2) / max(self._bytes, 1),
            "eval_runtime": time.perf_counter() - start,
        }

    @torch.no_grad()
    def _summed_loss(self, model: torch.nn.Module) -> float:
        accelerator = self._accelerator
        # One place for each batch, and each place filled by one process: the sum over processes
        # adds zeros only, so the result does not depend on how many there are.
        losses = torch.zeros(len(self._batches), device=accelerator.device)
        was_training = model.training
        model.eval()
        rounds = math.ceil(len(losses) / accelerator.num_processes)
        for turn in range(rounds):
            at = turn * accelerator.num_processes + accelerator.process_index
            # A process without a batch runs one all the same: a sharded model needs them all.
            loss = model(**self._batch(at % len(losses)))
            if at < len(losses):
                losses[at] = loss
        model.train(was_training)
        summed: torch.Tensor = accelerator.reduce(losses, reduction="sum")
        return float(summed.cpu().double().sum())

    def _batch(self, at: int) -> Batch:
        batch = self._collate([self._dataset[int(row)] for row in self._batches[at]])
        return {name: tensor.to(self._accelerator.device) for name, tensor in batch.items()}


def count_target_bytes(dataset: SupervisedDataset, tokenizer: TextTokenizer) -> int:
    """Return the bytes of the UTF-8 text that the split's target tokens decode to."""
    return sum(
        len(tokenizer.decode(dataset[row]["labels"].tolist()).encode("utf-8"))
        for row in range(len(dataset))
    )
