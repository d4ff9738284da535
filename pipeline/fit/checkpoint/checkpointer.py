"""Saves a run, and finds where it stands: checkpoints while the steps go on, the model at the end.

The steps pause while each process copies its part of the state (``staging.py``). A thread of each
then writes its part, hashing as it writes, and waits for the others; when all are done the main
process adds the manifest and renames the folder. Until then nothing has a checkpoint's name. The
next save, the end, a signal or an error wait for it. What a thread fails with is raised, in all
processes, after the step that is under way.
"""

import copy
import platform
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from pipeline.errors import CheckpointError, DuetError
from pipeline.fit.checkpoint.format import (
    Checkpoint,
    checked_checkpoint,
    delete_oldest,
    find_checkpoint,
    publish_checkpoint,
    rng_file,
    temporary_folder,
)
from pipeline.fit.checkpoint.hashed_file import HashedFile
from pipeline.fit.checkpoint.identity import check_identity
from pipeline.fit.checkpoint.model_card import model_card, write_card
from pipeline.fit.checkpoint.pretrained import (
    STATE_FILE,
    is_trained,
    save_config,
    save_weights,
    weight_files,
    write_trained,
    writing_errors,
)
from pipeline.fit.checkpoint.staging import (
    Staging,
    Weights,
    deal,
    map_tensors,
    size_of,
    tensors_of,
    weights_of_model,
)
from pipeline.fit.checkpoint.train_state import RunState, TrainState, rng_state
from pipeline.fit.distributed.fsdp import local_shard, resharded
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.model.lora import is_adapted
from pipeline.fit.training.nonfinite import diverged
from pipeline.logs import note
from pipeline.tokenizer import copy_tokenizer

T = TypeVar("T")
Seals = dict[str, dict[str, Any]]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A checkpoint that is to be written, with copies of what one process writes of it."""

    folder: Path
    """Where, until it is complete."""
    model: Any
    """Not wrapped; its weights are those of ``weights``."""
    weights: Weights
    files: dict[str, list[str]]
    """Names of the weights, by file."""
    my_files: list[str]
    """Those of them that this process writes."""
    objects: dict[str, Any]
    """What it writes with ``torch.save``, by file."""
    progress: RunState
    description: str
    """The content of ``trainer_state.json``."""


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
        except DuetError as error:
            if kind is None:
                raise
            note(f"and the checkpoint before was not written: {error}")

    def load_latest(self) -> tuple[Checkpoint | None, bool]:
        """Return the newest complete checkpoint, and whether the run has nothing left to do.

        The main process decides for all: the others must not look while it writes.

        Raises:
            CheckpointError: It cannot be used, or was made with other settings.
        """
        found = _raised(self._group.from_first(self._attempt(self._find_latest, only=0)))
        checkpoint, finished = found or (None, False)
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
        different = checkpoint.differences(settings.identity)
        other = check_identity(
            checkpoint.folder.name,
            different,
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
        part = self._stage(state)
        paused = time.perf_counter() - began
        self._writing = self._thread.submit(self._write, part, paused)

    def check(self) -> None:
        """Raise what the thread failed with, and say what is written; wait for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is written.

        Raises:
            OutputError: It could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            note(writing.result())

    def save_pretrained(
        self, state: TrainState, run_metadata: dict[str, Any], *, best_step: int = 0
    ) -> None:
        """Write the trained folder, and wait for it.

        Args:
            state: The run's last.
            run_metadata: What stands in ``run.json``.
            best_step: The checkpoint that is written instead; 0: the state's own weights.

        Raises:
            CheckpointError: That checkpoint is not there, or damaged.
            ModelError: A weight is infinite or NaN.
            OutputError: The folder, or the checkpoint before, could not be written.
        """
        self.wait()
        self._check_weights(state)
        model, settings = model_of(state), self._settings
        weights = weights_of_model(model)
        mine = set(weights.tensors) if self._group.rank == 0 else set()
        copies = Staging().copy(weights.tensors, mine)

        def write() -> None:
            write_trained(
                settings.output,
                model,
                settings.tokenizer,
                weights.copied(copies),
                run_metadata=run_metadata,
                trainer_state=settings.describe(state.progress),
                best=checked_checkpoint(settings.output, best_step) if best_step else None,
            )
            write_card(settings.output, model_card(run_metadata, state.progress))

        _raised(self._group.from_first(self._attempt(write, only=0)))

    def _check_weights(self, state: TrainState) -> None:
        """Refuse to save weights that are no numbers; a loss tells only those of the step before.

        Raises:
            ModelError: A weight is infinite or NaN, in the shard of any process.
        """
        weights = resharded(state.model).named_parameters()
        found = [name for name, weight in weights if not local_shard(weight).isfinite().all()]
        if names := [name for names in self._group.gather(found[:1]) for name in names]:
            name = names[0].rpartition("model.")[2]
            raise diverged(state.progress.step, f"{name} with values that are not finite")

    def _stage(self, state: TrainState) -> Part:
        """Copy what this process writes of a checkpoint; all must take part."""
        folder = temporary_folder(self._settings.output, state.progress.step)
        folder = self._group.from_first(folder)  # with the first process's id in its name
        _raised(self._group.from_first(self._attempt(lambda: _make(folder), only=0)))
        model = model_of(state)
        weights = weights_of_model(model)
        writers = [0] if is_adapted(model) else self._find_writers(folder)
        full = not self._settings.save_only_model
        optimizer = state.optimizer.state_dict() if full else {"state": {}}
        files = weight_files(_sizes(weights.tensors), len(writers))
        parts = optimizer_files(optimizer["state"], len(writers)) if full else {}
        my_files = _share(files, writers, self._group.rank)
        my_parts = _share(parts, writers, self._group.rank)

        tensors = weights.tensors | tensors_of(optimizer["state"])
        mine = {name for names in my_files.values() for name in names}
        chosen = {key: optimizer["state"][key] for keys in my_parts.values() for key in keys}
        mine |= set(tensors_of(chosen))
        copies = self._staging.copy(tensors, mine)

        groups = copy.deepcopy(optimizer.get("param_groups"))
        objects: dict[str, Any] = {
            file: {
                "state": map_tensors(
                    {key: chosen[key] for key in keys}, lambda name, _: copies[name]
                ),
                "param_groups": groups,
            }
            for file, keys in my_parts.items()
        }
        if full:
            states = self._group.gather(rng_state())
            if self._group.rank == 0:
                objects["scheduler.pt"] = copy.deepcopy(state.schedule.state_dict())
                objects |= {rng_file(i, len(states)): rng for i, rng in enumerate(states)}
        return Part(
            folder=folder,
            model=model,
            weights=weights.copied(copies),
            files=files,
            my_files=list(my_files),
            objects=objects,
            progress=copy.deepcopy(state.progress),
            description=self._settings.describe(state.progress),
        )

    def _find_writers(self, folder: Path) -> list[int]:
        """Return the processes that see the folder: on nodes without a shared disk, one node's."""
        seen = self._group.gather((folder.is_dir(), platform.node()))
        blind = sorted({node for sees, node in seen if not sees})
        if blind and not self._said_who_writes:
            self._said_who_writes = True
            note(
                f"{self._settings.output} is on no disk that all nodes share: checkpoints are "
                f"written where process 0 runs; to resume, copy them to {', '.join(blind)}, too"
            )
        return [rank for rank, (sees, _) in enumerate(seen) if sees]

    def _write(self, part: Part, paused: float) -> str:
        """Write a checkpoint, with the others; the thread runs this. Return what to say."""
        start, step = time.perf_counter(), part.progress.step
        final = self._settings.output / f"checkpoint-{step}"

        def complete() -> None:
            with writing_errors(final):
                save_config(part.folder, part.model, part.weights, part.files)
                copy_tokenizer(self._settings.tokenizer, part.folder)
                (part.folder / STATE_FILE).write_text(part.description, encoding="utf-8")
            publish_checkpoint(
                part.folder,
                final,
                seals={name: seal for some in seals for name, seal in some.items()},
                identity=self._settings.identity,
                processes=self._group.size,
                state=part.progress,
            )
            limit = self._settings.save_total_limit
            delete_oldest(self._settings.output, step, limit, protected=self.protected)

        outcomes = self._group.gather(self._attempt(lambda: write_part(part, final)))
        seals = [_raised(outcome) for outcome in outcomes]
        _raised(self._group.from_first(self._attempt(complete, only=0)))
        seconds = time.perf_counter() - start
        return f"saved {final.name} (training paused {paused:.2f} s, written in {seconds:.2f} s)"

    def _attempt(self, work: Callable[[], Any], only: int | None = None) -> Any:
        """Return what work returns or raises, for the others to hear of it.

        Args:
            work: What to do.
            only: The process that does it; None: all.
        """
        if only not in (None, self._group.rank):
            return None
        try:
            return work()
        except Exception as error:
            return error


def _raised(outcome: Any) -> Any:
    """Return what ``_attempt`` returned in another process, or raise it."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _make(folder: Path) -> None:
    with writing_errors(folder):
        folder.mkdir()


def _sizes(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: size_of(tensor) for name, tensor in tensors.items()}


def _share(files: dict[str, T], writers: list[int], rank: int) -> dict[str, T]:
    """Return the files that are a process's to write: each writer's turn comes again."""
    return {
        file: content
        for i, (file, content) in enumerate(files.items())
        if writers[i % len(writers)] == rank
    }


def optimizer_files(state: dict[int, Any], writers: int) -> dict[str, list[int]]:
    """Return the files that an optimizer's state is written into, each with its weights' numbers.

    Args:
        state: The optimizer's, by the number of the weight.
        writers: Processes that write; each gets one.
    """
    sizes = {key: sum(_sizes(tensors_of(state[key])).values()) for key in state}
    parts = [part for part in deal(sizes, writers) if part]
    if len(parts) < 2:
        return {"optimizer.pt": list(state)}
    return {f"optimizer-{i:05d}-of-{len(parts):05d}.pt": keys for i, keys in enumerate(parts, 1)}


def write_part(part: Part, final: Path) -> Seals:
    """Write what is this process's of a checkpoint, hashing as it is written.

    Raises:
        OutputError: It cannot be written.
    """
    seals = {}
    with writing_errors(final):
        if not is_adapted(part.model):
            for name in part.my_files:
                tensors = {key: part.weights.tensors[key] for key in part.files[name]}
                seals[name] = save_weights(part.folder / name, tensors)
        for name, content in part.objects.items():
            with HashedFile(part.folder / name) as file:
                torch.save(content, file)  # type: ignore[arg-type]
            seals[name] = file.seal()
    return seals


def model_of(state: TrainState) -> Any:
    """Return the transformers model of a state, not wrapped."""
    wrapped: Any = state.model
    while hasattr(wrapped, "module"):  # DistributedDataParallel
        wrapped = wrapped.module
    return wrapped.model
