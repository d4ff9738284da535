"""Checkpoints: written whole or not at all, found by number, resumed only by the same run.

OUT/checkpoint-300/
  model.safetensors  config.json  generation_config.json  the tokenizer's files
  optimizer.pt  scheduler.pt  rng_state.pth (rng_state_0.pth … with several processes)
  trainer_state.json
  checkpoint.json    written last: identity of the run, position, size and SHA-256 of all files

Of several processes each writes a part: ``model-0000N-of-0000M.safetensors`` with an index, as
Hugging Face has it, and ``optimizer-0000N-of-0000M.pt``. The tensors in them are whole, so that any
number of processes resumes from them, sharded or not, and ``from_pretrained`` loads the folder.
With ``--save-only-model`` there is neither optimizer, scheduler nor random state.
"""

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.console.logs import note
from pipeline.errors import CheckpointError, DuetError
from pipeline.fit.checkpoint.pretrained import STATE_FILE
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.json_object import read_json_object
from pipeline.store.atomic import output_errors, publish_folder
from pipeline.store.seals import FileSeal, read_sealed_json, sealed_json

SCHEMA_VERSION = 3
READ_SCHEMAS = (2, 3)
"""In 2, one process wrote everything."""
MANIFEST = "checkpoint.json"
_NAME = re.compile(r"checkpoint-([0-9]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    identity: dict[str, Any]
    processes: int
    state: RunState
    files: tuple[str, ...]

    @property
    def has_optimizer(self) -> bool:
        """Whether a run can be resumed from it; not from one of ``--save-only-model``."""
        return any(name.startswith("optimizer") for name in self.files)

    def load(self, name: str) -> Any:
        """Return what ``torch.save`` wrote into a file of the checkpoint, on the CPU.

        Tensors stay in the file until they are used: of a process that takes its shards alone, the
        rest is never its memory, nor read.

        Raises:
            CheckpointError: The file is damaged.
        """
        try:
            return torch.load(self.folder / name, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch, zip and pickle have many words for a damaged file
            raise damaged(self.folder / name, error) from error

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's ``state_dict``, put together from all files that have some."""
        whole: dict[str, Any] = {}
        for name in self.files:
            if name.startswith("optimizer"):
                part = self.load(name)
                whole = part | {"state": whole.get("state", {}) | part["state"]}
        return whole


def damaged(where: Path, error: Exception) -> CheckpointError:
    """Return the error for a checkpoint whose content cannot be read."""
    kind = type(error).__name__  # what torch says of a damaged file is a page long
    got = error.got if isinstance(error, DuetError) else f"content that cannot be read ({kind})"
    return CheckpointError(
        "a checkpoint is damaged",
        where=where,
        got=got,
        do="delete its folder; the run then resumes from the one before",
    )


def find_checkpoint(output: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint; others are skipped with a note.

    Raises:
        CheckpointError: There are some, and none can be used: to start anew would replace them.
            Or the newest may not be read.
    """
    unusable: list[tuple[Path, ValueError]] = []
    for step, folder in sorted(_folders(output), reverse=True):
        try:
            return _read(folder, step)
        except ValueError as error:
            note(f"{folder.name} is skipped: incomplete or damaged ({error})")
            if (folder / MANIFEST).exists():
                unusable.append((folder, error))
    if unusable:
        folder, fault = unusable[0]
        raise CheckpointError(
            "no checkpoint can be used",
            where=folder,
            got=fault,
            do="delete the checkpoints to start anew, or give another --output-dir",
        )
    return None


def checked_checkpoint(output: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step, which is complete.

    Raises:
        CheckpointError: It is not there, or damaged, or may not be read.
    """
    folder = output / f"checkpoint-{step}"
    try:
        return _read(folder, step).folder
    except ValueError as error:
        raise CheckpointError(
            "the best checkpoint is missing or damaged",
            where=folder,
            got=error,
            do="put it back; or the same command without --load-best-model-at-end writes the last",
        ) from error


def publish_checkpoint(
    temporary: Path,
    final: Path,
    *,
    seals: dict[str, FileSeal],
    identity: dict[str, Any],
    processes: int,
    state: RunState,
) -> None:
    """Complete a checkpoint in which all is written but the manifest, and give it its name.

    Files that have no seal yet, as those that were hashed while they were written, are hashed.
    """
    with output_errors(final):
        others = sorted(path for path in temporary.iterdir() if path.name not in seals)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "identity": identity,
            "processes": processes,
            "progress": state.progress(),
            "files": dict(sorted((seals | {path.name: _seal(path) for path in others}).items())),
        }
        (temporary / MANIFEST).write_text(sealed_json(manifest), encoding="utf-8")
    _make_way(final)
    publish_folder(temporary, final)


def _make_way(final: Path) -> None:
    """Move aside what has a checkpoint's name and is none of this program's."""
    if not final.exists() or (final / MANIFEST).is_file():
        return
    names = (f"{final.name}.before{'' if i == 1 else i}" for i in itertools.count(1))
    aside = next(path for path in map(final.with_name, names) if not path.exists())
    with output_errors(final):
        final.rename(aside)
    note(f"{final.name} is not a checkpoint of this run: renamed to {aside.name} now")


def delete_oldest(
    output: Path, newest: int, limit: int | None, *, protected: Collection[int] = ()
) -> None:
    """Keep at most ``limit`` complete checkpoints: ``checkpoint-<newest>`` and those before it.

    Folders that this program did not complete stay, and so do the checkpoints of the steps that are
    ``protected``, which count.
    """
    if limit is None:
        return
    found = {step: path for step, path in sorted(_folders(output)) if (path / MANIFEST).is_file()}
    older = [step for step in found if step < newest]
    excess = max(len(older) - (limit - 1), 0)
    for folder in [found[step] for step in older if step not in protected][:excess]:
        # Renamed first, so that what is left is never taken for whole: see output.py.
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        with output_errors(folder):
            folder.rename(old)
            shutil.rmtree(old)


def _folders(output: Path) -> list[tuple[int, Path]]:
    folders = output.iterdir() if output.is_dir() else iter(())
    return [
        (int(match[1]), folder)
        for folder in folders
        if (match := _NAME.fullmatch(folder.name)) and folder.is_dir()
    ]


def _read(folder: Path, step: int) -> Checkpoint:
    """Read a checkpoint; raise ValueError where it is incomplete or damaged."""
    try:
        return _checked(folder, step)
    except PermissionError as error:
        raise CheckpointError(
            "no permission to read a checkpoint",
            where=error.filename,
            got="permission denied",
            do="have its owner allow it (chmod -R a+rX), or give another --output-dir",
        ) from error
    except (OSError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(error) from error


def _checked(folder: Path, step: int) -> Checkpoint:
    manifest = read_json_object(folder / MANIFEST)
    if "checksum" in manifest:  # an older version's has none
        manifest = read_sealed_json(folder / MANIFEST)
    if manifest["schema_version"] not in READ_SCHEMAS:
        raise ValueError(f"schema {manifest['schema_version']}, not {SCHEMA_VERSION}")
    seals = {name: FileSeal(**seal) for name, seal in manifest["files"].items()}
    for name, seal in seals.items():
        size = (folder / name).stat().st_size
        if size != seal.bytes:
            raise ValueError(f"{name} has {size} bytes, not {seal.bytes}")
    identity, processes = manifest["identity"], manifest["processes"]
    if not isinstance(identity, dict) or not isinstance(processes, int):
        raise TypeError("identity or processes of a wrong type")
    log = read_json_object(folder / STATE_FILE)["log_history"]
    state = RunState.from_progress(manifest["progress"], log)
    if state.step != step:
        raise ValueError(f"it was made at step {state.step}")
    _check_seals(folder, seals)  # last: it reads all of them
    return Checkpoint(
        folder=folder,
        identity=identity,
        processes=processes,
        state=state,
        files=tuple(seals),
    )


def _check_seals(folder: Path, seals: dict[str, FileSeal]) -> None:
    """Hash files, several at a time."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "hashing") as pool:
        found = pool.map(lambda name: _seal(folder / name), seals)
        for (name, seal), actual in zip(seals.items(), found, strict=True):
            if actual != seal:
                raise ValueError(f"{name} was changed after it was written")


def _seal(path: Path) -> FileSeal:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileSeal(path.stat().st_size, sha256)
