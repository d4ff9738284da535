"""A model in memory -> a folder in Hugging Face's layout: a checkpoint's, or the trained one.

    model.safetensors  config.json  generation_config.json  the tokenizer's files

Large weights are ``model-0000N-of-0000M.safetensors`` and ``model.safetensors.index.json``. The
output folder itself also gets ``README.md`` (``model_card.py``), ``run.json``, ``checksums.json``
and, last, ``trainer_state.json``: each file is whole or not there.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.console.logs import note
from pipeline.errors import OutputError
from pipeline.fit.checkpoint.hashed_file import Seals, weight_writers, write_hashed
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.families import states_tying
from pipeline.fit.model.fingerprint import files_of_index
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.model.lora import ADAPTER_FILES, is_adapted, is_adapter, save_adapter
from pipeline.json_object import read_json_object
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
_INDEX = "model.safetensors.index.json"
_WEIGHTS = (
    "model.safetensors",
    *ADAPTER_FILES,
    "model-*-of-*.safetensors",
    _INDEX,
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
    "pytorch_model.bin.index.json",
)
MODEL_FILES = (*_WEIGHTS, "config.json", "generation_config.json", *TOKENIZER_FILES)
"""What others load, as names and patterns of names; no path of this machine stands in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's weights, apart from the model."""

    tensors: dict[str, torch.Tensor]
    """By name, as in its state dict; of those that are one, the first name alone."""
    sizes: dict[str, int]
    """The bytes of each; of a sharded one, of all its shards."""
    tied: bool
    """Whether input and output share one matrix."""
    aliases: dict[str, str]
    """Of an adapter, the other names of its tensors, each with the one above."""

    def copied(self, copies: Mapping[str, torch.Tensor]) -> "Weights":
        """Return the same with those of its tensors that are among copies."""
        tensors = {name: copies[name] for name in self.tensors if name in copies}
        return dataclasses.replace(self, tensors=tensors)


def weights_of_model(model: Any) -> Weights:
    """Return a model's weights where they are; of one with an adapter, what is trained."""
    adapted = is_adapted(model)
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if adapted and not weight.requires_grad:
            continue
        if (one := names.setdefault(id(weight), name)) == name:
            tensors[name] = weight
        else:
            aliases[name] = one
    return Weights(
        tensors=tensors,
        sizes={name: size_of(weight) for name, weight in tensors.items()},
        tied=not adapted and is_tied(model),
        aliases=aliases,
    )


def size_of(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor; of a sharded one, of all its shards."""
    return tensor.numel() * tensor.element_size()


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
    folder: Path,
    model: Any,
    tokenizer: Path,
    weights: Weights | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Seals:
    """Write a model, or its adapter, and its tokenizer into a folder, not atomically.

    Args:
        folder: Made if it is not there.
        model: A transformers model, not wrapped.
        tokenizer: The folder that the tokenizer's files are copied from.
        weights: What is written in place of the model's own, which may be changing or sharded.
        max_shard_bytes: See ``weight_files``.

    Returns:
        The seals of the files that were hashed while they were written: large weights.

    Raises:
        OutputError: It cannot be written.
    """
    seals: Seals = {}
    weights = weights or weights_of_model(model)
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = weight_files(weights.sizes, max_shard_bytes=max_shard_bytes)
        save_config(folder, model, weights, files)
        if not is_adapted(model):
            tensors = {name: tensor.detach() for name, tensor in weights.tensors.items()}
            seals = write_hashed(folder, weight_writers(files, tensors))
        copy_tokenizer(tokenizer, folder)
    return seals


def weight_files(
    sizes: Mapping[str, int], writers: int = 1, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, list[str]]:
    """Return the files that weights of these bytes are written into, each with the names in it.

    Each of the processes that write gets as many files, of about the same size.
    """
    each = math.ceil(sum(sizes.values()) / (max_shard_bytes * writers))
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
    """Write what belongs to weights in these files: configs, index; of an adapter, all of it."""
    if is_adapted(model):
        aliases = {name: weights.tensors[one] for name, one in weights.aliases.items()}
        save_adapter(folder, model, weights.tensors | aliases)
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
    if not states_tying(model.config):
        # An older transformers believes what a T5's config says, and would load an untied one tied.
        config = read_json_object(folder / "config.json") | {"tie_word_embeddings": weights.tied}
        _write_json(folder / "config.json", dict(sorted(config.items())))
    if len(files) > 1:
        place = {name: file for file, names in files.items() for name in names}
        total = {"total_size": sum(weights.sizes.values())}
        _write_json(folder / _INDEX, {"metadata": total, "weight_map": dict(sorted(place.items()))})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_trained(
    output: Path,
    save: Callable[[Path], Seals],
    *,
    run_metadata: Mapping[str, Any],
    trainer_state: str,
    best: Path | None = None,
) -> None:
    """Write the trained model into the output folder, ``trainer_state.json`` last.

    Where it is the folder of the model that the run started from, the files of that one's tokenizer
    and weights go.

    Args:
        output: The run's output folder.
        save: ``save_model`` of the model, into a folder.
        run_metadata: What stands in ``run.json``.
        trainer_state: The content of ``trainer_state.json``.
        best: A checkpoint whose weights are written in place of these.

    Raises:
        OutputError: It cannot be written.
    """
    temporary = output / f".trained.{os.getpid()}.tmp"
    seals = save(temporary)
    with output_errors(output):
        if best is not None:
            seals = {}
            for pattern in _WEIGHTS:
                for path in temporary.glob(pattern):
                    path.unlink()
                for path in best.glob(pattern):
                    shutil.copyfile(path, temporary / path.name)
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
        values = read_json_object(output / STATE_FILE)
        same = values["global_step"] == state.step
        same = same and values["log_history"][: len(state.log)] == state.log
        if is_adapter(output):
            files = {*ADAPTER_FILES}
        else:
            files = {"config.json", "generation_config.json"}
            several = (output / _INDEX).is_file()
            files |= set(files_of_index(output / _INDEX)) if several else {"model.safetensors"}
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return bool(same) and all((output / name).is_file() for name in {*files, RUN_FILE})
