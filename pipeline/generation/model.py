"""A trained folder, or one exported for CTranslate2, to what writes answers with it."""

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ExportConfig
from pipeline.console.logs import note
from pipeline.errors import ConfigError, DuetError, InputError, ModelError, require_package
from pipeline.export import export
from pipeline.fit.flops import ModelFlops
from pipeline.fit.model.checks import check_writes
from pipeline.fit.model.fast_paths.layers import fuse_layers
from pipeline.fit.model.fingerprint import name_of_weights
from pipeline.fit.model.loading import load_trained
from pipeline.fit.model.lora import ADAPTER_FILES, is_adapter
from pipeline.fit.model.sizes import UNLIMITED, most_positions
from pipeline.fit.model.token_ids import eos_ids
from pipeline.generation.config import GenerationOptions
from pipeline.generation.engine.answer import Sampling
from pipeline.generation.engine.ctranslate2_decoder import CTranslate2Decoder
from pipeline.generation.engine.decoder import Decoder
from pipeline.generation.engine.scheduler import Engine
from pipeline.generation.engine.transformers_decoder import TransformersDecoder
from pipeline.generation.source import SourceEncoder
from pipeline.hub.download import permission_errors
from pipeline.json_object import read_json_object
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from pipeline.window import saved_length

_EXPORTED = "model.bin"
_MAX_ROWS = {"cpu": 64, "cuda": 256}
_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.6}
"""Of the free memory, what keys and values may take; the rest is for what computes them."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model ready to answer."""

    name: str
    tokenizer: TextTokenizer
    source: SourceEncoder
    target_length: int
    """Most tokens of an answer in its training."""
    most_new_tokens: int
    """Most tokens of an answer that it has positions for."""
    eos_ids: frozenset[int]
    decoder: Decoder
    tokenizer_folder: str
    """Where its tokenizer's files are."""

    def engine(self, *, max_waiting: int | None = None) -> Engine:
        """Return a fresh engine; one at a time for a model."""
        return Engine(self.decoder, self.tokenizer, eos_ids=self.eos_ids, max_waiting=max_waiting)

    def sampling(self, options: GenerationOptions, *, seed: int | None = None) -> Sampling:
        """Return how an answer is written by some settings.

        Raises:
            ConfigError: It would be longer than the model has positions for.
        """
        length = self.target_length if options.max_new_tokens is None else options.max_new_tokens
        if length > self.most_new_tokens:
            raise ConfigError(
                "the model has too few positions for such an answer",
                where="--max-new-tokens",
                got=f"{length:,}, and {self.most_new_tokens:,} positions",
                do=f"give at most {self.most_new_tokens}",
            )
        return Sampling(
            max_new_tokens=length,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            num_beams=options.num_beams,
            repetition_penalty=options.repetition_penalty,
            stop=options.stop,
            seed=options.seed if seed is None else seed,
        )


def open_model(folder: Path, options: GenerationOptions) -> TrainedModel:
    """Load a trained folder, or one that was exported for CTranslate2.

    Raises:
        InputError: There is no trained folder.
        ModelError: It cannot be loaded.
        ConfigError: A package is missing, or the device lacks what was asked for.
    """
    check_trained(folder)
    is_exported = (folder / _EXPORTED).is_file()
    tokenizer = load_tokenizer(str(folder))
    if is_exported or options.engine == "ctranslate2":
        exported = folder if is_exported else _exported(folder)
        return _described(folder, tokenizer, _ctranslate2(exported, tokenizer, options), None)
    model = load_trained(folder).eval()
    check_writes(model, folder, "train another kind of model, or use another transformers")
    return _described(folder, tokenizer, transformers_decoder(model, options), model)


def baseline_model(
    name: str, model: Any, like: TrainedModel, options: GenerationOptions
) -> TrainedModel:
    """Return an untrained model that reads and answers as a trained one does.

    Args:
        name: What it is called.
        model: With a row for each id of the other's tokenizer.
        like: The trained one.
        options: How answers are written; always by transformers.
    """
    decoder = transformers_decoder(model, options)
    ids = eos_ids(like.tokenizer, model)
    return replace(like, name=name, decoder=decoder, eos_ids=ids)


def check_trained(folder: Path) -> None:
    """Refuse a folder that holds no model.

    Raises:
        InputError: It does not.
    """
    names = ("config.json", ADAPTER_FILES[1], _EXPORTED)
    with permission_errors():
        found = any((folder / name).is_file() for name in names)
    if not found:
        raise InputError(
            "no trained model",
            where=folder,
            got="neither config.json nor adapter_config.json in it",
            do="give the --output-dir of duet fit",
        )


def transformers_decoder(model: Any, options: GenerationOptions) -> TransformersDecoder:
    """Move a model to its device, with faster layers; return what writes with it.

    Raises:
        ConfigError: ``--bf16`` on a device without it.
    """
    where = device()
    if _is_bf16(options, where):
        model = model.to(torch.bfloat16)
    model = model.to(where)
    fuse_layers(model)
    return TransformersDecoder(
        model,
        max_rows=_MAX_ROWS[where],
        max_tokens=options.max_batch_tokens or _tokens_in_memory(model.config, where, model.dtype),
    )


def _described(
    folder: Path, tokenizer: TextTokenizer, decoder: Decoder, model: Any
) -> TrainedModel:
    saved = read_json_object(tokenizer.files.get("tokenizer_config.json", b"{}"))
    # Exported models are T5s.
    source_most, target_most = most_positions(model.config) if model else (UNLIMITED, UNLIMITED)
    window = min(saved_length(saved), source_most)
    return TrainedModel(
        name=str(folder),
        tokenizer=tokenizer,
        source=SourceEncoder(tokenizer, window),
        target_length=min(_target_length(folder, window), target_most),
        most_new_tokens=target_most,
        eos_ids=eos_ids(tokenizer, model),
        decoder=decoder,
        tokenizer_folder=str(folder),
    )


def _target_length(folder: Path, window: int) -> int:
    """Return the longest answer of the training, from its ``run.json``."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        run = read_json_object(folder / "run.json")
        length = run["prepared"]["config"]["max_target_length"]
        if isinstance(length, int) and length >= 1:
            return length
    return window


def device() -> str:
    """Return where models run: ``cuda`` or ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_bf16(options: GenerationOptions, device: str) -> bool:
    has_it = device == "cpu" or torch.cuda.is_bf16_supported()
    if options.bf16 and not has_it:
        raise ConfigError(
            "this GPU has no bfloat16", where="--bf16", got=True, do="leave --bf16 out"
        )
    return device == "cuda" and has_it if options.bf16 is None else options.bf16


def _tokens_in_memory(config: Any, device: str, dtype: torch.dtype) -> int:
    """Return how many tokens' keys and values a part of the free memory holds."""
    decoder = ModelFlops.of(config).decoder
    bytes_each = 2 * decoder.layers * decoder.keys * dtype.itemsize
    return max(int(_free_memory(device) * _MEMORY_SHARE[device]) // bytes_each, 1)


def _free_memory(device: str) -> int:
    """Return the bytes that are free: on the device, in the machine, or left to a container."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(free, 0)


def _ctranslate2(
    folder: Path, tokenizer: TextTokenizer, options: GenerationOptions
) -> CTranslate2Decoder:
    _require_ctranslate2(folder)
    if options.temperature > 0:
        note("CTranslate2 samples with its own random generator: --seed has no effect")
    where = device()
    return CTranslate2Decoder(
        folder,
        device=where,
        compute_type="bfloat16" if _is_bf16(options, where) else "float32",
        max_rows=_MAX_ROWS[where],
        max_tokens=options.max_batch_tokens or _exported_tokens(folder, where),
    )


def _exported_tokens(folder: Path, device: str) -> int:
    """Return how many tokens' keys and values fit beside an exported model.

    It does not say its sizes. A Flan-T5's weights are at least 6,000 times what a token's keys and
    values take (-small; 29,000 times in -xl), so these are never too many.
    """
    bytes_each = max((folder / _EXPORTED).stat().st_size // 6000, 1)
    return max(int(_free_memory(device) * _MEMORY_SHARE[device]) // bytes_each, 4096)


def _require_ctranslate2(where: object) -> None:
    require_package("ctranslate2", where=where, install='"duet-t5[ctranslate2]"')


def _exported(folder: Path) -> Path:
    """Return a trained folder's export for CTranslate2, beside its weights; made once.

    Raises:
        OutputError: It cannot be written there.
    """
    _require_ctranslate2("--engine ctranslate2")
    output = folder / f"ctranslate2-{name_of_model(folder)}"
    if not (output / _EXPORTED).is_file():
        note(f"exporting the model once, to {output}")
        export(
            ExportConfig(
                model=str(folder),
                output_dir=str(output),
                merge=is_adapter(folder),
                format="ctranslate2",
            )
        )
    return output


def name_of_model(folder: Path) -> str:
    """Return a name of the weights in a folder: another after another training.

    Raises:
        InputError: There is no trained folder.
        ModelError: Its weights cannot be read.
    """
    check_trained(folder)
    try:
        if (folder / _EXPORTED).is_file():
            with (folder / _EXPORTED).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:12]
        if is_adapter(folder):
            digest = hashlib.sha256()
            for name in ADAPTER_FILES:
                digest.update((folder / name).read_bytes())
            return digest.hexdigest()[:12]
        return name_of_weights(str(folder), None)[:12]
    except DuetError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(
            "the model's weights cannot be read",
            where=folder,
            got=error,
            do="copy the model's folder again",
        ) from error
