"""Micro-batches are run before the first step, to see what fits on the device.

The biggest of a run are: one that does not fit then ends in its first minute, and not on the third
day, when the longest rows come together. ``--auto-batch-size`` looks for the most of the longest
rows that fit at once, with room kept for what the optimizer will need; the global batch size
stays what the settings say. Nothing of it is left: no gradient, no number drawn, no weight moved.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.console.progress import Wait, advance
from pipeline.errors import ConfigError
from pipeline.fit.checkpoint.train_state import restore_rng_state, rng_state
from pipeline.fit.data.collate import Batch
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.device import is_out_of_memory
from pipeline.fit.distributed.fsdp_alone import without_communication
from pipeline.fit.distributed.launch import keeps_gradients

MOST_ROWS = 1_000_000
"""Rows of a run that are searched for the biggest micro-batch: half a minute, and only where the
longest rows at once do not fit."""

SMALLEST = Shape(1, 1, 1)

SPARE = 0.05
"""Share of the device's memory that is left alone: not every free piece can be used."""


def biggest(shapes: Iterable[Shape], flops: Callable[[int, int], Any]) -> list[Shape]:
    """Return the shapes that take most memory: by operations, encoder and decoder tokens.

    Which of them it is depends on the model. Where one micro-batch is the biggest in every way,
    it is the only one.
    """

    def sizes(shape: Shape) -> tuple[float, int, int]:
        rows, encoder, decoder = shape
        return rows * float(flops(encoder, decoder)), rows * encoder, rows * decoder

    known = set(shapes)
    # Of two that are equal in one way, the one with more operations.
    found = [max(known, key=lambda shape: (sizes(shape)[i], sizes(shape)[0])) for i in range(3)]
    return list(dict.fromkeys(found))


@dataclass
class MemoryProbe:
    """Tries micro-batches, in all processes of a run: what it finds holds for all of them.

    Each tries by itself, so that none waits in a collective for one that failed; then they agree.
    """

    model: torch.nn.Module
    """A ``SummedTokenLoss``, wrapped or not."""
    accelerator: Any
    token_id: int
    """Any id of the vocabulary."""
    reserved: Callable[[], int] = lambda: 0
    """Returns the bytes that are kept meanwhile, such as the optimizer's if it has none yet."""

    def too_big(self, shapes: Sequence[Shape]) -> Shape | None:
        """Return the first of the shapes that a process has no memory for; None where all fit."""
        from accelerate.utils import gather_object

        with Wait("trying the biggest micro-batches", len(shapes), "shapes"):
            own = next((shape for shape in shapes if not self.fits_in_memory(shape)), None)
        found = [shape for shape in gather_object([own]) if shape is not None]
        return found[0] if found else None

    def find_batch_size(self, longest: Shape, limit: int) -> int:
        """Return how many of the longest rows fit on every process's device, up to ``limit``.

        Args:
            longest: The lengths of the longest rows; of its rows, what to try first.
            limit: The most rows of interest.

        Raises:
            ConfigError: Not even one fits.
        """
        spare = spare_bytes(self.accelerator.device)
        with Wait("trying how many rows fit in memory", unit="tries"):
            found = largest_that_fits(
                lambda rows: self.fits_in_memory(longest._replace(rows=rows), spare),
                first=longest.rows,
                limit=limit,
            )
        each = self.accelerator.gather(torch.tensor([found], device=self.accelerator.device))
        found = int(each.min())
        if not found:
            raise ConfigError(
                "the device is out of memory with a single example",
                where="--auto-batch-size",
                got=f"{longest.encoder} encoder and {longest.decoder} decoder tokens",
                do="use --gradient-checkpointing True, --optim adafactor, or prepare with a "
                "smaller --model-max-length",
            )
        return found

    def fits_in_memory(self, shape: Shape, spare: int = 0) -> bool:
        """Return whether this process can run a micro-batch forward and backward.

        So many bytes are kept to ``spare``, besides what is reserved.
        """
        model, accelerator = self.model, self.accelerator
        device, generators = accelerator.device, rng_state()
        kept: list[torch.Tensor] = []
        model.train()
        try:
            with accelerator.no_sync(model), without_communication(model):
                # First the smallest: it makes the gradients, which are there as from a step's
                # second micro-batch.
                for tried in (SMALLEST, shape):
                    accelerator.backward(model(**full_batch(tried, self.token_id, device)))
                    if not kept:
                        size = self.reserved() + spare
                        kept.append(torch.empty(size, dtype=torch.uint8, device=device))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            advance(1)
            kept.clear()
            model.zero_grad(set_to_none=not keeps_gradients(model))
            restore_rng_state(generators)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return True


def warm_up_ddp_buckets(
    model: torch.nn.Module, accelerator: Any, shape: Shape, token_id: int
) -> None:
    """Let DistributedDataParallel put the gradients into the order that they come in.

    It does so after its first backward pass. Of more than two processes, the order in which a value
    is summed, and so its rounding, depends on its place: the first step of a resumed run would
    differ in the last bit from that step in a run that was not stopped.

    ``shape`` is that of the batch for it, the same on all processes and in all sessions.
    """
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return
    generators = rng_state()
    for _ in range(2):  # the second forward pass makes new buckets, the backward pass fills them
        model.zero_grad(set_to_none=True)
        accelerator.backward(model(**full_batch(shape, token_id, accelerator.device)))
    model.zero_grad(set_to_none=False)
    restore_rng_state(generators)


def full_batch(shape: Shape, token_id: int, device: torch.device) -> Batch:
    """Return a batch without padding, so that each position has a part in the loss."""
    sides = {"input_ids": shape.encoder, "attention_mask": shape.encoder, "labels": shape.decoder}
    values = {"input_ids": token_id, "attention_mask": 1, "labels": token_id}
    return {
        name: torch.full((shape.rows, length), values[name], device=device)
        for name, length in sides.items()
    }


def largest_that_fits(fits: Callable[[int], bool], *, first: int, limit: int) -> int:
    """Return the largest size that fits, at most ``limit``; 0 where not even 1 does.

    Args:
        fits: Tells whether a size fits; what is smaller than one that fits does, too.
        first: What to try first; then it is doubled or halved, and closed in on.
        limit: The largest size of interest; 1 or more.

    >>> tried = []
    >>> largest_that_fits(lambda size: tried.append(size) or size <= 11, first=4, limit=64)
    11
    >>> tried
    [4, 8, 16, 12, 10, 11]
    """
    fitting, failing, size = 0, limit + 1, min(first, limit)
    while failing - fitting > 1:
        if fits(size):
            fitting = size
        else:
            failing = size
        size = (fitting + failing) // 2 if failing <= limit else min(2 * fitting, limit)
    return fitting


def spare_bytes(device: torch.device) -> int:
    """Return the bytes that are left alone."""
    if device.type != "cuda":
        return 0
    return round(SPARE * torch.cuda.get_device_properties(device).total_memory)
