"""The rows of each step -> the padded batches of this process, ready when the step wants them.

On a GPU a thread makes the batches of the next steps while the device computes, in pinned memory,
from which they are copied without anyone waiting. On a CPU there is no core to spare: they are
made when they are wanted. Either way the seconds that the loop waited are counted.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch

from pipeline.fit.data.collate import IGNORED, Batch
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.micro_batches import MicroBatcher
from pipeline.fit.data.sampler import IntArray
from pipeline.fit.flops import ModelFlops
from pipeline.fit.model.fast_paths.compile import BUCKET
from pipeline.fit.model.loss import target_positions

STEPS_AHEAD = 2
"""Steps whose batches may wait to be used."""
GPU_MULTIPLE = 8
"""Lengths of a batch on a GPU are multiples of it."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """What one process needs for one optimizer step."""

    rows: IntArray
    """The rows of the step, on all processes."""
    encoder_tokens: int
    """The tokens of all these rows, padding not counted."""
    target_tokens: int
    """The same of their labels."""
    useful_flops: float
    """Operations of the forward pass over all these rows, padding not counted."""
    padded_flops: float
    """The same of the micro-batches that they are cut into, on all processes."""
    parts: list[IntArray]
    """The rows of each micro-batch of this process; none where it has nothing to do."""
    batches: list[Batch]
    """The micro-batches of this process, in main memory; as many as any other process has."""


@dataclass
class StepLoader:
    """Makes the batches of this process, and counts the seconds that they were waited for."""

    dataset: SupervisedDataset
    micro_batcher: MicroBatcher
    """Splits the examples of a step, and balances the parts."""
    pad_id: int
    """The id that encoder rows are padded with."""
    accelerator: Any
    waited: float = 0.0
    """Seconds that ``ahead`` kept its caller waiting, in all."""

    def feed(self, rows: IntArray) -> StepBatch:
        """Return the batches of a step."""
        accelerator, micro_batcher = self.accelerator, self.micro_batcher
        balanced = micro_batcher.balance(rows, accelerator.num_processes)
        mine = [parts[accelerator.process_index] for parts in balanced]
        encoder, decoder = self.dataset.lengths
        return StepBatch(
            rows=rows,
            encoder_tokens=int(encoder[rows].sum()),
            target_tokens=int(decoder[rows].sum()),
            useful_flops=micro_batcher.useful(rows),
            padded_flops=sum(
                micro_batcher.cost(part) for parts in balanced for part in parts if len(part)
            ),
            parts=mine,
            batches=[self._batch(part, rows[:1]) for part in mine],
        )

    @contextlib.contextmanager
    def ahead(self, steps: Iterable[IntArray]) -> Iterator[Iterator[StepBatch]]:
        """Yield an iterator over the batches of steps, on a GPU made ahead, by a thread."""
        feeds = map(self.feed, steps)
        if self.accelerator.device.type == "cpu":
            yield self._timed(feeds)
            return
        with contextlib.closing(made_ahead(feeds, STEPS_AHEAD, self._enter_thread)) as made:
            yield self._timed(made)

    def _timed(self, feeds: Iterator[StepBatch]) -> Iterator[StepBatch]:
        while True:
            start = time.perf_counter()
            feed = next(feeds, None)
            self.waited += time.perf_counter() - start
            if feed is None:
                return
            yield feed

    def _batch(self, rows: IntArray, spare: IntArray) -> Batch:
        """Return the batch of some rows; where there are none, one that adds nothing.

        A process whose share is empty must take part in the passes all the same: the others wait
        for its gradients.
        """
        if len(rows):
            batch = self.dataset.batch(rows, self.pad_id, multiple=self.micro_batcher.multiple)
        else:
            batch = self.dataset.batch(spare, self.pad_id, multiple=self.micro_batcher.multiple)
            batch = {
                name: tensor[:, : self.micro_batcher.multiple] for name, tensor in batch.items()
            }
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        # Here, where nobody waits for it: on the device, the processor would have to.
        batch["targets"] = target_positions(batch["labels"])
        if self.accelerator.device.type == "cuda":
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

    def _enter_thread(self) -> None:
        # Each thread starts on the first GPU; pinning there would take memory of another process.
        if self.accelerator.device.type == "cuda":
            torch.cuda.set_device(self.accelerator.device)


def micro_batcher_for(
    dataset: SupervisedDataset,
    config: Any,
    max_rows: int,
    device: torch.device,
    *,
    compiled: bool = False,
) -> MicroBatcher:
    """Return what cuts a data set's rows into micro-batches for a model on a device.

    Args:
        dataset: The rows.
        config: The model's, in transformers' form; it must name the sizes.
        max_rows: How many of the longest rows fit on the device.
        device: On a GPU, lengths are padded to what its matrix units like.
        compiled: Whether layers are compiled: lengths are padded to what their graphs want then.
    """
    return MicroBatcher(
        *dataset.lengths,
        flops=ModelFlops.of(config),
        max_rows=max_rows,
        multiple=BUCKET if compiled else GPU_MULTIPLE if device.type != "cpu" else 1,
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on the device; from pinned memory nobody waits for the copy."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def made_ahead(
    items: Iterator[Item], limit: int, enter: Callable[[], None]
) -> Generator[Item, None, None]:
    """Yield what an iterator gives, taken from it by a thread.

    An error in the thread is raised here, in the place of the item that it prevented. The thread
    ends with the last item, with an error, or when this generator is closed, which waits for it.

    Args:
        items: Used by the thread alone.
        limit: How many items may be made before they are asked for.
        enter: What the thread does first.

    >>> list(made_ahead(iter("abc"), 2, lambda: None))
    ['a', 'b', 'c']
    """
    end = object()
    pool = ThreadPoolExecutor(1, "feeding", enter)
    try:
        made = deque(pool.submit(next, items, end) for _ in range(limit))
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, items, end))
            yield cast("Item", item)
    finally:
        pool.shutdown(cancel_futures=True)
