"""Saves a run, and finds where it stands: checkpoints during training, the model at the end.

The steps pause while each process copies its part of the state (``staging.py``). A thread of each
then writes its part, hashing as it writes, and waits for the others; when all are done the main
process adds the manifest and renames the folder. Until then nothing has a checkpoint's name. The
next save, the end, a signal or an error wait for it. What a thread fails with is raised, in all
processes, after the step that is under way.
"""

import copy
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.console.logs import note
from pipeline.console.progress import Wait
from pipeline.errors import CheckpointError
from pipeline.fit.checkpoint.format import (
    Checkpoint,
    checked_checkpoint,
    delete_oldest,
    find_checkpoint,
    publish_checkpoint,
)
from pipeline.fit.checkpoint.hashed_file import Seals
from pipeline.fit.checkpoint.identity import check_identity, differences
from pipeline.fit.checkpoint.model_card import model_card, write_card
from pipeline.fit.checkpoint.pretrained import (
    MAX_SHARD_BYTES,
    STATE_FILE,
    is_trained,
    save_config,
    save_model,
    weights_of_model,
    write_trained,
    writing_errors,
)
from pipeline.fit.checkpoint.staging import Part, Staging, stage_part
from pipeline.fit.checkpoint.train_state import RunState, TrainState
from pipeline.fit.distributed.fsdp import full_tensor, local_shard, resharded
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.training.nonfinite import diverged
from pipeline.tokenizer import copy_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSettings:
    """What of a run's settings saving and resuming go by."""

    output: Path
    tokenizer: Path
    """The folder of the tokenizer's files."""
    identity: dict[str, Any]
    """See ``identity.run_identity``."""
    total_steps: int
    describe: Callable[[RunState], str]
    """Returns the content of ``trainer_state.json``."""
    save_total_limit: int | None = None
    save_only_model: bool = False
    resume_anyway: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES
    on_write: Callable[[int], object] = lambda step: None
    """Is told, by the thread, that it begins to write the checkpoint of a step."""


class Checkpointer:
    """Saves checkpoints and the trained folder; a context that ends when all is written."""

    def __init__(self, settings: CheckpointSettings, group: HostGroup) -> None:
        self._settings, self._group = settings, group
        self._staging = Staging()
        self._thread = ThreadPoolExecutor(1, "checkpointing")
        self._writing: Future[str] | None = None
        self._said_who_writes = False
        self.protected: set[int] = set()
        """Steps whose checkpoints ``--save-total-limit`` does not delete."""

    @property
    def saves_only_model(self) -> bool:
        """Whether a run cannot be resumed from its checkpoints."""
        return self._settings.save_only_model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; after another error its own is only noted."""
        try:
            self.wait()
        except Exception as error:
            if kind is None:
                raise
            note(f"the previous checkpoint was not written either: {error}")

    def load_latest(self) -> tuple[Checkpoint | None, bool]:
        """Return the newest complete checkpoint, and whether the run has nothing left to do.

        The main process decides for all: the others must not look while it writes.

        Raises:
            CheckpointError: It cannot be used, or was made with other settings.
        """
        with Wait("looking for checkpoints", unit="bytes"):
            checkpoint, finished = self._group.run_on_first(self._find_latest)
        lacking = checkpoint is not None and not checkpoint.folder.is_dir()
        nodes = self._group.gather(platform.node() if lacking else "")
        if checkpoint is not None and any(nodes):
            raise CheckpointError(
                "a node does not see the checkpoint that the run resumes from",
                where=checkpoint.folder,
                got=f"not there on {', '.join(sorted(set(nodes) - {''}))}",
                do="give an --output-dir on a disk that all nodes share, or copy the checkpoint "
                "there",
            )
        return checkpoint, finished

    def _find_latest(self) -> tuple[Checkpoint | None, bool]:
        settings = self._settings
        checkpoint = find_checkpoint(settings.output)
        if checkpoint is None:
            return None, False
        other = check_identity(
            checkpoint.folder.name,
            differences(checkpoint.identity, settings.identity),
            step=checkpoint.state.step,
            anyway=settings.resume_anyway,
        )
        ended = checkpoint.state.step == settings.total_steps or checkpoint.state.stopped_early
        finished = ended and is_trained(settings.output, checkpoint.state)
        if not finished and not checkpoint.has_optimizer:
            raise CheckpointError(
                "a run cannot be resumed from a checkpoint without the optimizer's state",
                where=checkpoint.folder,
                got="saved with --save-only-model",
                do="give another --output-dir, with --model-name-or-path for a new run from these "
                "weights; or delete the checkpoints to start anew",
            )
        if other:
            note(f"--resume-anyway: {checkpoint.folder.name} resumes with {other}")
        return checkpoint, finished

    def save(self, state: TrainState) -> None:
        """Save a checkpoint: copy the state, and start writing it.

        Raises:
            ModelError: A weight is infinite or NaN.
            OutputError: The checkpoint before could not be written.
        """
        began = time.perf_counter()
        self.wait()
        self._check_weights(state)
        folder = self._settings.output / f".checkpoint-{state.progress.step}.{os.getpid()}.tmp"
        folder = self._group.from_first(folder)  # with that one's process id in its name
        # The errors of writing alone: a process that is lost here is none of them.
        self._group.run_on_first(writing_errors(folder)(folder.mkdir))
        part = stage_part(
            state,
            self._staging,
            self._group,
            self._find_writers(folder),
            only_model=self._settings.save_only_model,
            max_shard_bytes=self._settings.max_shard_bytes,
        )
        progress = copy.deepcopy(state.progress)
        paused = time.perf_counter() - began
        self._writing = self._thread.submit(
            self._write, folder, part, state.unwrapped_model, progress, paused
        )

    def check(self) -> None:
        """Raise what the thread failed with, and say what is written; wait for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is written, or raise what it failed with."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with Wait("writing the checkpoint", unit="bytes"):
                said = writing.result()
            note(said)

    def save_pretrained(
        self, state: TrainState, run_metadata: dict[str, Any], *, best_step: int = 0
    ) -> None:
        """Write the trained folder, and wait for it; of a ``best_step``, that checkpoint's weights.

        Raises:
            CheckpointError: That checkpoint is not there, or damaged.
            ModelError: A weight is infinite or NaN.
            OutputError: The folder, or the checkpoint before, could not be written.
        """
        self.wait()
        self._check_weights(state)
        model, settings = state.unwrapped_model, self._settings
        weights, tensors = weights_of_model(model), {}
        for name, tensor in weights.tensors.items():
            full = full_tensor(tensor.detach())
            if self._group.rank == 0:
                tensors[name] = full.cpu()

        def save(folder: Path) -> Seals:
            copies, limit = weights.copied(tensors), settings.max_shard_bytes
            return save_model(folder, model, settings.tokenizer, copies, limit)

        def write() -> None:
            write_trained(
                settings.output,
                save,
                run_metadata=run_metadata,
                trainer_state=settings.describe(state.progress),
                best=checked_checkpoint(settings.output, best_step) if best_step else None,
            )
            write_card(settings.output, model_card(run_metadata, state.progress))

        with Wait("saving the trained model", sum(weights.sizes.values()), "bytes"):
            self._group.run_on_first(write)

    def _check_weights(self, state: TrainState) -> None:
        """Refuse to save weights that are no numbers: a loss tells those before the step."""
        weights = resharded(state.model).named_parameters()
        found = [name for name, weight in weights if not local_shard(weight).isfinite().all()]
        if names := [name for names in self._group.gather(found[:1]) for name in names]:
            name = names[0].rpartition("model.")[2]
            raise diverged(state.progress.step, f"{name} with values that are not finite")

    def _find_writers(self, folder: Path) -> list[int]:
        """Return the processes that see the folder: on nodes without a shared disk, one node's."""
        seen = self._group.gather((folder.is_dir(), platform.node()))
        blind = sorted({node for sees, node in seen if not sees})
        if blind and not self._said_who_writes:
            self._said_who_writes = True
            note(
                f"{self._settings.output} is not on a disk that all nodes share: checkpoints are "
                f"written where process 0 runs; to resume, copy them to {', '.join(blind)}, too"
            )
        return [rank for rank, (sees, _) in enumerate(seen) if sees]

    def _write(
        self, folder: Path, part: Part, model: Any, progress: RunState, paused: float
    ) -> str:
        """Write a checkpoint, with the others; the thread runs this. Return what to say."""
        start, settings = time.perf_counter(), self._settings
        final = settings.output / f"checkpoint-{progress.step}"

        def write() -> Seals:
            settings.on_write(progress.step)
            with writing_errors(final):
                return part.write(folder)

        def complete() -> None:
            with writing_errors(final):
                save_config(folder, model, part.weights, part.weight_files)
                copy_tokenizer(settings.tokenizer, folder)
                (folder / STATE_FILE).write_text(settings.describe(progress), encoding="utf-8")
            publish_checkpoint(
                folder,
                final,
                seals={name: seal for some in seals for name, seal in some.items()},
                identity=settings.identity,
                processes=self._group.size,
                state=progress,
            )
            limit = settings.save_total_limit
            delete_oldest(settings.output, progress.step, limit, protected=self.protected)

        seals = self._group.run_on_all(write)
        self._group.run_on_first(complete)
        seconds = time.perf_counter() - start
        return f"saved {final.name} (training paused {paused:.2f} s, written in {seconds:.2f} s)"
