"""A model in memory -> a folder in Hugging Face's layout: a checkpoint's, or the trained one.

    model.safetensors  config.json  generation_config.json  the tokenizer's files

Large weights are ``model-0000N-of-0000M.safetensors`` and ``model.safetensors.index.json``. The
output folder itself also gets ``README.md`` (``model_card.py``), ``run.json``, ``checksums.json``
and, last, ``trainer_state.json``: each file is whole or not there.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import OutputError
from pipeline.fit.checkpoint.hashed_file import HashedFile, write_safetensors
from pipeline.fit.checkpoint.staging import Weights, size_of, weights_of_model
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.model.fingerprint import files_of_index
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.model.lora import (
    ADAPTER_FILES,
    is_adapted,
    is_adapter,
    save_adapter,
)
from pipeline.logs import note
from pipeline.store.atomic import output_errors, sync_folder, write_file
from pipeline.store.fingerprint import sha256_of_text
from pipeline.store.seals import FileSeal, sealed_json
from pipeline.tokenizer import TOKENIZER_FILES, copy_tokenizer

K = TypeVar("K")
STATE_FILE = "trainer_state.json"
RUN_FILE = "run.json"
SEALS_FILE = "checksums.json"
MAX_SHARD_BYTES = 5 * 1000**3
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
MODEL_FILES = (*_WEIGHTS, "config.json", "generation_config.json", *TOKENIZER_FILES)
"""What others load, as names and patterns of names; no path of this machine stands in it."""
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


def save_model(
    folder: Path, model: Any, tokenizer: Path, weights: Weights | None = None
) -> dict[str, FileSeal]:
    """Write a model and its tokenizer into a folder, not atomically.

    Args:
        folder: Made if it is not there.
        model: A transformers model, not wrapped; of one with an adapter, the adapter is written.
        tokenizer: The folder that the tokenizer's files are copied from.
        weights: What is written in place of the model's own, which may be changing or sharded.

    Returns:
        The seals of the files that were hashed while they were written: large weights.

    Raises:
        OutputError: It cannot be written.
    """
    seals = {}
    weights = weights or weights_of_model(model)
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = weight_files({name: size_of(t) for name, t in weights.tensors.items()})
        save_config(folder, model, weights, files)
        if not is_adapted(model):
            for file, names in files.items():
                tensors = {name: weights.tensors[name].detach().cpu() for name in names}
                with HashedFile(folder / file) as target:
                    write_safetensors(tensors, target)
                seals[file] = FileSeal(**target.seal())
        copy_tokenizer(tokenizer, folder)
    return seals


def weight_files(sizes: Mapping[str, int], writers: int = 1) -> dict[str, list[str]]:
    """Return the files that weights are written into, each with the names in it.

    Args:
        sizes: The bytes of each weight.
        writers: Processes that write; each gets as many files, of about the same size.
    """
    each = math.ceil(sum(sizes.values()) / (MAX_SHARD_BYTES * writers))
    return deal_files("model.safetensors", sizes, writers * max(each, 1))


def deal_files(name: str, sizes: Mapping[K, int], count: int) -> dict[str, list[K]]:
    """Deal things out to files of about the same size, called as Hugging Face calls them.

    Args:
        name: That of the file, if it is one.
        sizes: The bytes of each thing.
        count: Of files; they are fewer where there are not as many things.

    >>> deal_files("a.pt", {"shared": 9, "q": 2, "k": 2, "wi": 4}, 2)
    {'a-00001-of-00002.pt': ['shared'], 'a-00002-of-00002.pt': ['wi', 'q', 'k']}
    """
    count = min(count, len(sizes))
    if count < 2:
        return {name: list(sizes)}
    parts: list[list[K]] = [[] for _ in range(count)]
    loads = [0] * count
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        at = loads.index(min(loads))
        parts[at].append(key)
        loads[at] += sizes[key]
    stem, suffix = name.split(".")
    return {f"{stem}-{i:05d}-of-{count:05d}.{suffix}": part for i, part in enumerate(parts, 1)}


def save_config(
    folder: Path, model: Any, weights: Weights, files: Mapping[str, Sequence[str]]
) -> None:
    """Write what belongs to the weights: configs and index; of a model with an adapter, all of it.

    Args:
        folder: Where.
        model: The model, not wrapped.
        weights: Its weights; of an adapter they are written, too.
        files: The names of the weights in each file.
    """
    if is_adapted(model):
        save_adapter(folder, model, weights.with_all_names())
        # safetensors lets the owner alone read what it writes.
        shutil.copymode(folder / ADAPTER_FILES[1], folder / ADAPTER_FILES[0])
        return
    # Config and generation config, aside: it deletes files of weights that it did not write itself.
    aside = folder / "configs"
    with quiet_transformers():
        model.save_pretrained(aside, state_dict={})
    for path in aside.iterdir():
        path.replace(folder / path.name)
    aside.rmdir()
    _state_tying(folder / "config.json", weights.tied)
    if len(files) > 1:
        place = {name: file for file, names in files.items() for name in names}
        index = {
            "metadata": {"total_size": weights.nbytes},
            "weight_map": dict(sorted(place.items())),
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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
    run_metadata: Mapping[str, Any],
    trainer_state: str,
    best: Path | None = None,
) -> None:
    """Write the trained model into the output folder, ``trainer_state.json`` last.

    Args:
        output: The run's output folder; where it is the folder of the model that the run started
            from, the files of that one's tokenizer and weights go.
        model: The model, not wrapped.
        tokenizer: The folder of the tokenizer's files.
        weights: What is written in place of the model's own.
        run_metadata: What stands in ``run.json``.
        trainer_state: The content of ``trainer_state.json``.
        best: A checkpoint whose weights are written in place of these.

    Raises:
        OutputError: It cannot be written.
    """
    temporary = output / f".trained.{os.getpid()}.tmp"
    seals = save_model(temporary, model, tokenizer, weights)
    if best is not None:
        _take_weights(best, temporary)
        seals = {}
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
    text = json.dumps(run_metadata, indent=2, ensure_ascii=False, default=str)
    write_file(output / RUN_FILE, text + "\n")
    seals |= {name: FileSeal.of(output / name) for name in {*new, RUN_FILE}.difference(seals)}
    state = trainer_state.encode()
    seals[STATE_FILE] = FileSeal(len(state), sha256_of_text(trainer_state))
    write_file(output / SEALS_FILE, sealed_json({"files": dict(sorted(seals.items()))}))
    write_file(output / STATE_FILE, trainer_state)


def _take_weights(checkpoint: Path, folder: Path) -> None:
    """Put a checkpoint's weights in the place of those in a folder."""
    with output_errors(folder):
        for pattern in _WEIGHTS:
            for path in folder.glob(pattern):
                path.unlink()
            for path in checkpoint.glob(pattern):
                shutil.copyfile(path, folder / path.name)


def _delete_stale(output: Path, new: Sequence[str]) -> None:
    """Delete files of another tokenizer and of other weights, which a loader would mix in."""
    weights = {path.name for pattern in _WEIGHTS for path in output.glob(pattern)}
    if stale := sorted(weights.difference(new)):
        note(f"weights that were in {output} before are deleted: {', '.join(stale)}")
    for name in {*TOKENIZER_FILES, *weights}.difference(new):
        (output / name).unlink(missing_ok=True)


def is_trained(output: Path, state: RunState) -> bool:
    """Return whether the output folder holds the trained model of the run that ``state`` ends."""
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
