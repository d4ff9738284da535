"""A model in memory -> a folder in Hugging Face's layout: a checkpoint's, or the trained one.

    model.safetensors  config.json  generation_config.json  the tokenizer's files

Large weights are ``model-0000N-of-0000M.safetensors`` and ``model.safetensors.index.json``. The
output folder itself also gets ``README.md`` (``card.py``), ``run.json`` and, last,
``trainer_state.json``: each file is whole or not there.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import OutputError
from pipeline.fit.checkpoint.staging import Weights
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.model.lora import (
    ADAPTER_FILES,
    files_of_index,
    is_adapted,
    is_adapter,
    save_adapter,
)
from pipeline.logs import note
from pipeline.store.atomic import output_errors, sync_folder, write_file
from pipeline.tokenizer import TOKENIZER_FILES, copy_tokenizer

STATE_FILE = "trainer_state.json"
RUN_FILE = "run.json"
MAX_SHARD_SIZE = "5GB"
"""Weights of more are several files with an index, which every loader of this layout knows."""
_WEIGHTS = (
    "model.safetensors",
    *ADAPTER_FILES,
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = "model.safetensors.index.json"


@contextlib.contextmanager
def writing_errors(where: Path) -> Iterator[None]:
    """Turn what the file system, torch and safetensors raise while writing into one line."""
    from safetensors import SafetensorError

    with output_errors(where):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:
            raise OutputError(
                "cannot write",
                where=where,
                got=str(error).splitlines()[0],
                do="free some space, or give a folder that can be written",
            ) from error


def save_model(folder: Path, model: Any, tokenizer: Path, weights: Weights | None = None) -> None:
    """Write a model and its tokenizer into a folder, not atomically.

    Args:
        folder: Made if it is not there.
        model: A transformers model, not wrapped; of one with an adapter, the adapter is written.
        tokenizer: The folder that the tokenizer's files are copied from.
        weights: What is written in place of the model's own, which may be changing or in shares.

    Raises:
        OutputError: It cannot be written.
    """
    with writing_errors(folder), quiet_transformers():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = None if weights is None else dict(weights.tensors)  # it takes from the dict
        if is_adapted(model):
            save_adapter(folder, model, tensors)
        else:
            model.save_pretrained(folder, state_dict=tensors, max_shard_size=MAX_SHARD_SIZE)
            tied = is_tied(model) if weights is None else weights.tied
            _state_tying(folder / "config.json", tied)
        copy_tokenizer(tokenizer, folder)


def _state_tying(path: Path, tied: bool) -> None:
    """Say in the config whether input and output are tied.

    A T5's config says ``true`` in recent transformers whatever the weights are, and an older one
    believes it and loads an untied model tied.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = tied
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_trained(
    output: Path,
    model: Any,
    tokenizer: Path,
    weights: Weights | None = None,
    *,
    run: str,
    trainer_state: str,
) -> None:
    """Write the trained model into the output folder, ``trainer_state.json`` last.

    Args:
        output: The run's output folder; where it is the folder of the model that the run started
            from, the files of that one's tokenizer and weights go.
        model: The model, not wrapped.
        tokenizer: The folder of the tokenizer's files.
        weights: What is written in place of the model's own.
        run: The content of ``run.json``.
        trainer_state: The content of ``trainer_state.json``.

    Raises:
        OutputError: It cannot be written.
    """
    temporary = output / f".trained.{os.getpid()}.tmp"
    save_model(temporary, model, tokenizer, weights)
    with output_errors(output):
        (output / STATE_FILE).unlink(missing_ok=True)  # until it is back, this is not complete
        new = sorted(path.name for path in temporary.iterdir())
        for name in new:
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
            (temporary / name).replace(output / name)
        _delete_stale(output, new)
        sync_folder(output)
        shutil.rmtree(temporary)
    write_file(output / RUN_FILE, run)
    write_file(output / STATE_FILE, trainer_state)


def _delete_stale(output: Path, new: Sequence[str]) -> None:
    """Delete files of another tokenizer and of other weights, which a loader would mix in."""
    weights = {path.name for pattern in _WEIGHTS for path in output.glob(pattern)}
    if stale := sorted(weights.difference(new)):
        note(f"weights that were in {output} before are deleted: {', '.join(stale)}")
    for name in {*TOKENIZER_FILES, *weights}.difference(new):
        (output / name).unlink(missing_ok=True)


def is_trained(output: Path, state: RunState) -> bool:
    """Tell whether the output folder holds the trained model of the run that ``state`` ends."""
    try:
        values = json.loads((output / STATE_FILE).read_text(encoding="utf-8"))
        same = values["global_step"] == state.step
        same = same and values["log_history"][: len(state.log)] == state.log
    except (OSError, ValueError, TypeError, KeyError):
        return False
    try:
        if is_adapter(output):
            files = {*ADAPTER_FILES, RUN_FILE}
        else:
            files = {*_weight_files(output), "config.json", "generation_config.json", RUN_FILE}
    except (OSError, ValueError):
        return False
    return bool(same) and all((output / name).is_file() for name in files)


def _weight_files(output: Path) -> set[str]:
    """Return the names of the files that the weights are in, or should be."""
    if not (output / _INDEX).is_file():
        return {"model.safetensors"}
    return set(files_of_index(output / _INDEX))
