"""Checkpoints: written whole or not at all, found by number, resumed only by the same run.

OUT/checkpoint-300/
  model.safetensors  config.json  generation_config.json  the tokenizer's files
  optimizer.pt  scheduler.pt  rng_state.pth (rng_state_0.pth … with several processes)
  trainer_state.json
  checkpoint.json    written last: identity of the run, position, size and SHA-256 of all files
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import FitConfig
from pipeline.errors import CheckpointError, DuetError, InputError
from pipeline.fit.checkpoint.pretrained import STATE_FILE, save_model, writing_errors
from pipeline.fit.checkpoint.staging import Weights
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.schedule import RunPlan
from pipeline.fit.training.optim import warmup_steps
from pipeline.logs import note
from pipeline.store.atomic import output_errors, publish_folder
from pipeline.store.fingerprint import sha256_of_file

SCHEMA_VERSION = 2
MANIFEST = "checkpoint.json"
_NAME = re.compile(r"checkpoint-([0-9]+)")
_OTHER_RUN = (
    "--model-name-or-path (config)",
    "--model-name-or-path (weights)",  # of an adapter's base
    "vocabulary",
    "rows to train on",
)
"""What a run cannot go on with another of, by its name in the identity."""
_SET_BY = {
    "rows per step": "--train-batch-size",
    "steps in all": "--max-steps",
    "warmup steps": "--warmup-steps",
}
"""What sets a value directly that follows from several flags, or from the number of processes."""
_SETTINGS = (
    "seed",
    "bf16",
    "group_by_length",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)
_SETTINGS_IF_GIVEN = ("lr_scheduler_kwargs", "label_smoothing_factor", "dropout")
"""Checkpoints of runs without them do not name them."""
_LORA_SETTINGS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "quantize")


def run_identity(
    config: FitConfig,
    plan: RunPlan,
    *,
    fingerprint: str,
    num_rows: int,
    model: str,
    vocabulary: str,
) -> dict[str, Any]:
    """Return what must be the same for a run to go on, by the words that a refusal names it by.

    Args:
        config: The settings.
        plan: The steps.
        fingerprint: The prepared folder's.
        num_rows: Rows to train on.
        model: What kind of model the run starts from: see ``model.architecture``.
        vocabulary: A name of the prepared tokenizer's pieces and their ids.
    """
    settings = (*_SETTINGS, *(_LORA_SETTINGS if config.lora_r else ()))
    settings += tuple(
        name for name in _SETTINGS_IF_GIVEN if getattr(config, name) != getattr(FitConfig, name)
    )
    return {
        "--model-name-or-path (config)": model,
        "vocabulary": vocabulary,
        "--from-scratch": config.from_scratch,
        "--data-path (fingerprint)": fingerprint,
        "rows per step": plan.rows_per_step,
        "rows to train on": num_rows,
        "steps in all": plan.total_steps,
        "warmup steps": warmup_steps(config.schedule, plan.total_steps),
        **{f"--{name.replace('_', '-')}": getattr(config, name) for name in settings},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    identity: dict[str, Any]
    processes: int
    state: RunState

    def differences(self, identity: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the settings that differ, each with its value here and the one now."""
        return {
            name: (self.identity.get(name), identity.get(name))
            for name in {**identity, **self.identity}
            if self.identity.get(name) != identity.get(name)
        }

    def check_identity(self, identity: dict[str, Any], *, anyway: bool = False) -> str:
        """Refuse to go on with other settings.

        Args:
            identity: That of the run to go on.
            anyway: Go on all the same, where that is possible.

        Returns:
            The settings that differ, in words; empty where none does.

        Raises:
            CheckpointError: A setting differs; it names the first, with both values.
        """
        different = self.differences(identity)
        barred = [name for name in different if not self._can_change(name, *different[name])]
        for name in barred or ([] if anyway else different):
            before, value = different[name]
            old = f"{_SET_BY[name]} {before}" if name in _SET_BY else "the value it was made with"
            way = "" if barred else "--resume-anyway to go on with this one, "
            raise CheckpointError(
                "a run cannot go on with other settings",
                where=name,
                got=f"{value}, but {self.folder.name} was made with {before}",
                do=f"give {old}, {way}or another --output-dir",
            )
        return ", ".join(f"{name} {now} (was {old})" for name, (old, now) in different.items())

    def _can_change(self, name: str, before: Any, now: Any) -> bool:
        """Tell whether there is a meaning in going on with another value."""
        if name == "--optim":  # the two of AdamW keep the same state
            return "adafactor" not in (before, now)
        if name == "steps in all":
            return bool(now >= self.state.step)
        return name not in _OTHER_RUN and not name.startswith("--lora-")

    def load(self, name: str, *, mapped: bool = False) -> Any:
        """Return what ``torch.save`` wrote into a file of the checkpoint, on the CPU.

        Args:
            name: The file.
            mapped: Leave tensors in the file until they are used: of a process that takes its
                share alone, the rest is then never its memory.

        Raises:
            CheckpointError: The file is damaged.
        """
        try:
            return torch.load(
                self.folder / name, map_location="cpu", weights_only=True, mmap=mapped
            )
        except Exception as error:  # torch, zip and pickle have many words for a damaged file
            raise damaged(self.folder / name, error) from error

    def rng_state(self, process: int) -> dict[str, Any]:
        """Return the generators of one of the processes that the run had."""
        state: dict[str, Any] = self.load(_rng_file(process, self.processes))
        return state


def damaged(where: Path, error: Exception) -> CheckpointError:
    """Return the error for a checkpoint whose content cannot be read."""
    kind = type(error).__name__  # what torch says of a damaged file is a page long
    got = error.got if isinstance(error, DuetError) else f"content that cannot be read ({kind})"
    return CheckpointError(
        "a checkpoint is damaged",
        where=where,
        got=got,
        do="delete its folder; the run then goes on from the one before",
    )


def find_checkpoint(output: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint; others are passed over with a note.

    Raises:
        CheckpointError: There are checkpoints of this program, and none can be used: to start
            anew would replace them.
    """
    unusable: list[tuple[Path, Exception]] = []
    for step, folder in sorted(_folders(output), reverse=True):
        try:
            return _read(folder, step)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, InputError) as error:
            note(f"{folder.name} is incomplete or damaged ({error}); passed over")
            if (folder / MANIFEST).exists():
                unusable.append((folder, error))
    if unusable:
        folder, fault = unusable[0]
        raise CheckpointError(
            "no checkpoint can be used",
            where=folder,
            got=fault.got if isinstance(fault, DuetError) else fault,
            do="delete the checkpoints to start anew, or give another --output-dir",
        )
    return None


def write_checkpoint(
    output: Path,
    *,
    model: Any,
    weights: Weights,
    tokenizer: Path,
    optimizer: dict[str, Any],
    schedule: dict[str, Any],
    rng_states: Sequence[dict[str, Any]],
    identity: dict[str, Any],
    state: RunState,
    trainer_state: str,
) -> Path:
    """Write ``output/checkpoint-STEP``: a temporary sibling, synced, then renamed.

    Args:
        output: The run's output folder.
        model: The model, not wrapped.
        weights: Its weights at the time of ``state``.
        tokenizer: The folder of the tokenizer's files.
        optimizer: The optimizer's state.
        schedule: The schedule's state.
        rng_states: The generators of each process, in order.
        identity: See ``run_identity``.
        state: Where the run stands.
        trainer_state: The content of ``trainer_state.json``.

    Raises:
        OutputError: It cannot be written.
    """
    final = output / f"checkpoint-{state.step}"
    temporary = output / f".{final.name}.{os.getpid()}.tmp"
    parts = {"optimizer.pt": optimizer, "scheduler.pt": schedule}
    parts |= {_rng_file(i, len(rng_states)): rng for i, rng in enumerate(rng_states)}
    save_model(temporary, model, tokenizer, weights)
    with writing_errors(final):
        for name, part in parts.items():
            torch.save(part, temporary / name)
        (temporary / STATE_FILE).write_text(trainer_state, encoding="utf-8")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "identity": identity,
            "processes": len(rng_states),
            "progress": state.progress(),
            "files": {path.name: _seal(path) for path in sorted(temporary.iterdir())},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _make_way(final)
    publish_folder(temporary, final)
    return final


def _make_way(final: Path) -> None:
    """Move aside what has a checkpoint's name and is none of this program's."""
    if not final.exists() or (final / MANIFEST).is_file():
        return
    names = (f"{final.name}.before{'' if i == 1 else i}" for i in itertools.count(1))
    aside = next(path for path in map(final.with_name, names) if not path.exists())
    with output_errors(final):
        final.rename(aside)
    note(f"{final.name} was there before and is no checkpoint of this run; it is {aside.name} now")


def delete_oldest(output: Path, newest: int, limit: int | None) -> None:
    """Keep at most ``limit`` complete checkpoints: ``checkpoint-<newest>`` and those before it.

    Folders that this program did not complete are left alone.
    """
    if limit is None:
        return
    older = [
        folder
        for step, folder in sorted(_folders(output))
        if step < newest and (folder / MANIFEST).is_file()
    ]
    for folder in older[: max(len(older) - (limit - 1), 0)]:
        # Renamed first, so that what is left is never taken for whole: see delete_leftovers.
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        with output_errors(folder):
            folder.rename(old)
            shutil.rmtree(old)


def delete_leftovers(output: Path) -> None:
    """Delete what a run that was killed left half written."""
    for pattern in (".checkpoint-*.tmp", ".checkpoint-*.old", ".trained.*.tmp"):
        for folder in output.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def _folders(output: Path) -> list[tuple[int, Path]]:
    folders = output.iterdir() if output.is_dir() else iter(())
    return [
        (int(match[1]), folder)
        for folder in folders
        if (match := _NAME.fullmatch(folder.name)) and folder.is_dir()
    ]


def _read(folder: Path, step: int) -> Checkpoint:
    """Read a checkpoint's manifest, and check the files that it names.

    Raises:
        OSError, ValueError, TypeError, KeyError, AttributeError, InputError: It is not complete.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema {manifest['schema_version']}, not {SCHEMA_VERSION}")
    for name, seal in manifest["files"].items():
        size = (folder / name).stat().st_size
        if size != seal["bytes"]:
            raise ValueError(f"{name} has {size} bytes, not {seal['bytes']}")
    identity, processes = manifest["identity"], manifest["processes"]
    if not isinstance(identity, dict) or not isinstance(processes, int):
        raise TypeError("identity or processes of a wrong type")
    log = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["log_history"]
    state = RunState.from_progress(manifest["progress"], log)
    if state.step != step:
        raise ValueError(f"it was made at step {state.step}")
    for name, seal in manifest["files"].items():  # last: it reads all of them
        if _seal(folder / name) != seal:
            raise ValueError(f"{name} is not as it was written")
    return Checkpoint(folder=folder, identity=identity, processes=processes, state=state)


def _seal(path: Path) -> dict[str, Any]:
    """Return what tells a file from a damaged one."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def _rng_file(process: int, processes: int) -> str:
    return "rng_state.pth" if processes == 1 else f"rng_state_{process}.pth"
