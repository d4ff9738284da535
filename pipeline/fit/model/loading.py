"""A name or folder -> an encoder-decoder ready to train on a prepared folder.

Weights are float32 (``--bf16`` computes in bfloat16 around them). The embedding gets a row for
each id of the prepared tokenizer; tied stays tied and untied untied, through saving and loading.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config.views import ModelSettings
from pipeline.console.logs import note
from pipeline.errors import DuetError, ModelError
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.load_once import load_once
from pipeline.fit.model import lora
from pipeline.fit.model.adapter import base_name, find_base
from pipeline.fit.model.embedding import is_tied, rows_for, untie
from pipeline.fit.model.families import complete_config, has_own_head, let_all_have_gradients
from pipeline.fit.model.fast_paths.attention import share_bias
from pipeline.fit.model.fast_paths.layers import checkpoint_activations, fuse_layers, set_dropout
from pipeline.fit.model.sizes import set_vocabulary_rows, vocabulary_rows
from pipeline.fit.model.token_ids import (
    check_rows,
    check_vocabulary,
    fit_embedding,
    model_token_ids,
    piece_ids,
)
from pipeline.hub.download import check_readable, counted_weights, find_model_file
from pipeline.json_object import read_json_object
from pipeline.tokenizer import TextTokenizer


def build_model(
    settings: ModelSettings,
    tokenizer: TextTokenizer,
    *,
    checkpoint: Path | None = None,
    hosts: HostGroup | None = None,
) -> Any:
    """Return the model that a run trains, with its adapter where it gets one.

    Args:
        settings: What it is built from.
        tokenizer: The prepared folder's; each of its ids gets a row.
        checkpoint: The folder that its weights, or its adapter's, are read from; None: as new.
        hosts: The run's processes. The first one loads; the others have no weights until
            ``load_once.receive_weights``.

    Raises:
        ModelError: No such model, not an encoder-decoder, damaged, incomplete, or made for
            another vocabulary.
        ConfigError: The adapter's settings do not fit the model.
    """
    name = base_name(settings.name, settings.cache_dir)
    hosts = hosts or HostGroup()
    resumed = checkpoint if settings.lora is None else None

    def load() -> Any:
        if resumed is not None:
            return load_trained(resumed)
        if settings.from_scratch:
            return init_model(
                name, tokenizer.vocab_size, cache_dir=settings.cache_dir, seed=settings.seed
            )
        return load_model(
            name,
            tokenizer,
            cache_dir=settings.cache_dir,
            may_grow=settings.lora is None,
            quantized=lora.quantization(settings.quantize, bf16=settings.bf16),
        )

    # bitsandbytes quantizes on each process's own device, a matrix at a time.
    model = load() if settings.quantize else load_once(load, hosts)
    model = _finished(model, settings, tokenizer, str(resumed or name))
    start = checkpoint or Path(settings.name)
    if settings.lora and lora.is_adapter(start) and (hosts.rank == 0 or settings.quantize):
        with model_errors(start):
            check_vocabulary(str(start), tokenizer, model_token_ids(str(start)))
            lora.restore_adapter(model, start)
    return model


def model_structure(settings: ModelSettings, tokenizer: TextTokenizer) -> Any:
    """Return the model that ``build_model`` would, on the device ``meta``; no weights are read."""
    name = base_name(settings.name, settings.cache_dir)
    with torch.device("meta"):
        model = init_model(name, tokenizer.vocab_size, cache_dir=settings.cache_dir)
        if not settings.from_scratch and is_tied(model) and has_own_head(name, model):
            untie(model)
        return _finished(model, settings, tokenizer, name)


def load_model(
    name: str,
    tokenizer: TextTokenizer,
    *,
    cache_dir: str | None = None,
    may_grow: bool = True,
    quantized: Mapping[str, Any] | None = None,
) -> Any:
    """Return a trained model with a row for each id of the tokenizer.

    Its embedding grows, but not that of an adapter's base. See also ``lora.quantization``.

    Raises:
        ModelError: No such model, damaged, incomplete, or made for another vocabulary.
    """
    _read_config(name, cache_dir)
    with model_errors(name), quiet_transformers():
        own_ids = model_token_ids(name, cache_dir)
        check_vocabulary(name, tokenizer, own_ids)
        model = _pretrained(name, cache_dir, **(quantized or {}))
        if own_ids is None:
            note("the model has no tokenizer: embeddings of new tokens start from the mean")
        if not may_grow:
            check_rows(model, name, tokenizer)
        fit_embedding(model, tokenizer, own_ids)
    return model


def load_trained(folder: Path) -> Any:
    """Return a model that was trained here, as it was saved; an adapter is merged into its base.

    Raises:
        ModelError: It cannot be loaded.
    """
    with model_errors(folder), quiet_transformers():
        if lora.is_adapter(folder):
            base = find_base(folder)
            with model_errors(base):
                model = _pretrained(base, None)
            return lora.merge_adapter(model, folder)
        return _pretrained(str(folder), None)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and hints off the terminal: its hint on untied T5s is wrong here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_config(name: str, cache_dir: str | None) -> Any:
    """Return a model's config.

    Raises:
        ModelError: There is none, or none that transformers knows.
    """
    from transformers import AutoConfig

    _read_config(name, cache_dir)
    with model_errors(name), quiet_transformers():
        return AutoConfig.from_pretrained(name, cache_dir=cache_dir)


def _read_config(name: str, cache_dir: str | None) -> dict[str, Any]:
    path = find_model_file(name, "config.json", cache_dir)
    if path is None:
        raise ModelError(
            "not a model",
            where=name,
            got="no config.json",
            do="give a folder with config.json, or a hub name",
        )
    with model_errors(path):
        return read_json_object(path)


@contextlib.contextmanager
def model_errors(where: object) -> Iterator[None]:
    """Turn whatever transformers, safetensors or torch meet in a model into one clear line."""
    try:
        yield
    except DuetError:
        raise
    except Exception as error:
        check_readable(Path(str(where)))
        lines = str(error).strip().splitlines() or [""]
        raise ModelError(
            "the model cannot be loaded",
            where=where,
            got=f"{type(error).__name__}: {lines[0]}",
            do="give an encoder-decoder model, complete, such as google/flan-t5-base",
        ) from error


def _pretrained(name: str, cache_dir: str | None, **quantized: Any) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    with counted_weights(f"loading {name}"):
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            name,
            cache_dir=cache_dir,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the first of them can be named, below
            **quantized,
        )
    wrong = ""
    if info["mismatched_keys"]:
        weight, found, wanted = sorted(info["mismatched_keys"])[0]
        wrong = f"{weight} of shape {list(found)}, not {list(wanted)}"
    elif info["missing_keys"]:
        wrong = f"no {min(info['missing_keys'])}, {len(info['missing_keys'])} missing in all"
    if wrong:
        raise ModelError(
            "the model's weights are not those that its config.json describes",
            where=name,
            got=wrong,
            do="copy the model's folder again, or give a complete encoder-decoder model",
        )
    return model if quantized else model.float()


def init_model(name: str, vocab_size: int, *, cache_dir: str | None = None, seed: int = 42) -> Any:
    """Return a model with fresh weights, of a config alone, with so many rows or more.

    Raises:
        ModelError: There is no config, or none of an encoder-decoder.
    """
    from transformers import AutoModelForSeq2SeqLM

    raw, settings = _read_config(name, cache_dir), load_config(name, cache_dir)
    auto: Any = AutoModelForSeq2SeqLM
    with model_errors(name), quiet_transformers():
        if vocabulary_rows(settings) < vocab_size:
            set_vocabulary_rows(settings, rows_for(vocab_size))
        torch.manual_seed(seed)
        model = auto.from_config(settings).float()
        if raw.get("tie_word_embeddings") is False and is_tied(model):
            untie(model)
    return model


def _check_generation_config(model: Any, name: str) -> None:
    """Refuse now what transformers would refuse to save when steps are done."""
    quiet = quiet_transformers()
    try:
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as folder, quiet:
            model.generation_config.save_pretrained(folder)
    except ValueError as error:
        lines = str(error).splitlines()
        raise ModelError(
            "transformers does not save the model's generation config",
            where=name,
            got=next((line[2:] for line in lines if line.startswith("- ")), lines[0]),
            do="correct generation_config.json in a copy of the model",
        ) from error


def _finished(model: Any, settings: ModelSettings, tokenizer: TextTokenizer, name: str) -> Any:
    """Return a loaded model as it is trained: fast, and with its adapter."""
    check_rows(model, name, tokenizer)
    complete_config(model, name, tokenizer.eos_id)
    _check_generation_config(model, name)
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    share_bias(model)
    fuse_layers(model)
    let_all_have_gradients(model)
    if settings.lora is not None:
        model = lora.add_adapter(
            model, settings.lora, list(piece_ids(tokenizer).values()), name=name
        )
        if settings.bf16:
            lora.hold_in_bfloat16(model)
    return model
