"""Micro-batches are run before the first step, to see what fits on the device.

The biggest of a run are: one that does not fit then ends in its first minute, and not on the third
day, when the longest rows come together. With ``--auto-batch-size`` their size is looked for so.
Nothing of it is left: no gradient, no number drawn, no weight moved.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pipeline.fit.checkpoint.rng import restore_rng_state, rng_state
from pipeline.fit.data.collate import Batch
from pipeline.fit.data.micro_batches import Shape

MOST_ROWS = 1_000_000
"""Rows of a run that are searched for the biggest micro-batch: half a minute, and only where the
longest rows at once do not fit."""

SMALLEST = Shape(1, 1, 1)


def pays_off(device: torch.device) -> bool:
    """Tell whether to try: on a CPU a run that does not fit is no error that could be told.

    There the machine swaps, or ends the process; and the trial costs as much as some steps.
    """
    return device.type != "cpu"


def biggest(shapes: Iterable[Shape], flops: Callable[[int, int], Any]) -> list[Shape]:
    """Return the shapes that take most memory: by operations, encoder and decoder tokens.

    Which of them it is depends on the model. Where one micro-batch is the biggest in every way,
    it is the only one.

    Args:
        shapes: Of all micro-batches.
        flops: The operations of a row of given lengths: see ``flops.ModelFlops``.
    """

    def sizes(shape: Shape) -> tuple[float, int, int]:
        """Return the operations and the tokens of both sides."""
        rows, encoder, decoder = shape
        return rows * float(flops(encoder, decoder)), rows * encoder, rows * decoder

    known = set(shapes)
    # Of two that are equal in one way, the one with more operations.
    found = [max(known, key=lambda shape: (sizes(shape)[i], sizes(shape)[0])) for i in range(3)]
    return list(dict.fromkeys(found))


def try_out(
    model: torch.nn.Module,
    accelerator: Any,
    shapes: Sequence[Shape],
    *,
    token_id: int,
    reserved: int = 0,
) -> Shape | None:
    """Run micro-batches forward and backward, as the run will.

    No process waits for another, unless the model is in shares.

    Args:
        model: A ``SummedTokenLoss``, wrapped or not.
        accelerator: accelerate's Accelerator.
        shapes: What to try.
        token_id: Any id of the vocabulary.
        reserved: Bytes that are kept meanwhile, such as the optimizer's if it has none yet.

    Returns:
        The first shape that there was no memory for; None where all fit.
    """
    device, generators = accelerator.device, rng_state()
    model.train()
    shape, kept = SMALLEST, []
    try:
        kept.append(torch.empty(reserved, dtype=torch.uint8, device=device))
        # The smallest makes the gradients, which are there as from a step's second micro-batch.
        for shape in (SMALLEST, *shapes):
            with accelerator.no_sync(model):
                accelerator.backward(model(**full_batch(shape, token_id, device)))
    except torch.cuda.OutOfMemoryError:
        return shape
    finally:
        kept.clear()
        model.zero_grad(set_to_none=True)
        restore_rng_state(generators)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return None


def settle_buckets(model: torch.nn.Module, accelerator: Any, shape: Shape, token_id: int) -> None:
    """Let DistributedDataParallel put the gradients into the order that they come in.

    It does so after its first backward pass. Of more than two processes, the order in which a value
    is summed, and so its rounding, depends on its place: the first step of a run that goes on would
    differ in the last bit from that step in a run that was not stopped.

    Args:
        model: A ``SummedTokenLoss``, wrapped or not, in training mode.
        accelerator: accelerate's Accelerator.
        shape: Of the batch for it; the same on all processes and in all sittings.
        token_id: Any id of the vocabulary.
    """
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return
    generators = rng_state()
    accelerator.backward(model(**full_batch(shape, token_id, accelerator.device)))
    model.zero_grad(set_to_none=True)
    restore_rng_state(generators)


def full_batch(shape: Shape, token_id: int, device: torch.device) -> Batch:
    """Return a batch without padding, so that each position has a part in the loss."""
    sides = {"input_ids": shape.encoder, "attention_mask": shape.encoder, "labels": shape.decoder}
    values = {"input_ids": token_id, "attention_mask": 1, "labels": token_id}
    return {
        name: torch.full((shape.rows, length), values[name], device=device)
        for name, length in sides.items()
    }
