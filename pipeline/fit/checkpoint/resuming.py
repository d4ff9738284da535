"""Where a run stands: the checkpoint that it goes on from, and whether anything is left to do."""

import platform
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.fit.checkpoint.format import Checkpoint, find_checkpoint
from pipeline.fit.checkpoint.pretrained import is_trained
from pipeline.fit.context import RunContext
from pipeline.logs import note


def find_state(ctx: RunContext) -> tuple[Checkpoint | None, bool]:
    """Return the checkpoint to go on from, and whether the run has nothing left to do.

    The main process decides for all: the others must not look while it writes.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    found: list[Any] = [None, False, None]
    if ctx.accelerator.is_main_process:
        try:
            found[:2] = _look_for_state(ctx)
        except CheckpointError as error:  # the others wait to hear of it
            found[2] = error
    broadcast_object_list(found)
    checkpoint, finished, refusal = found
    if refusal is not None:
        raise refusal
    lacking = checkpoint is not None and not checkpoint.folder.is_dir()
    if nodes := gather_object([platform.node()] if lacking else []):
        raise CheckpointError(
            "a node does not see the checkpoint that the run goes on from",
            where=checkpoint.folder,
            got=f"not there on {', '.join(sorted(set(nodes)))}",
            do="give an --output-dir on a disk that all nodes share, or copy the checkpoint there",
        )
    return checkpoint, finished


def _look_for_state(ctx: RunContext) -> tuple[Checkpoint | None, bool]:
    checkpoint = find_checkpoint(ctx.output)
    if checkpoint is None:
        return None, False
    if other := checkpoint.check_identity(ctx.identity, anyway=ctx.config.resume_anyway):
        note(f"--resume-anyway: {checkpoint.folder.name} goes on with {other}")
    ended = checkpoint.state.step == ctx.plan.total_steps
    return checkpoint, ended and is_trained(ctx.output, checkpoint.state)
