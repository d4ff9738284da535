"""A name or folder -> an encoder-decoder ready to train on a prepared folder.

Weights are float32 (``--bf16`` computes in bfloat16 around them). The embedding gets a row for
each id of the prepared tokenizer; tied stays tied and untied untied, through saving and loading.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config_views import LoraSettings, ModelSettings
from pipeline.errors import DuetError, ModelError
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.load_once import load_once
from pipeline.fit.model.adapter import base_name, find_base
from pipeline.fit.model.attention import share_bias
from pipeline.fit.model.embedding import (
    is_tied,
    rows_for,
)
from pipeline.fit.model.layers import fuse_layers
from pipeline.fit.model.lora import (
    ADAPTER_FILES,
    add_adapter,
    hold_in_bfloat16,
    is_adapter,
    merge_adapter,
    name_of_weights,
    restore_adapter,
)
from pipeline.fit.model.quantizing import quantization
from pipeline.fit.model.token_ids import (
    check_rows,
    check_vocabulary,
    fit_embedding,
    own_token_ids,
    piece_ids,
)
from pipeline.hub import check_readable, find_model_file
from pipeline.logs import note
from pipeline.store.fingerprint import key_of, sha256_of_file
from pipeline.tokenizer import TextTokenizer

_SHAPE = (
    "model_type",
    "d_model",
    # T5 and its like
    "d_ff",
    "d_kv",
    "num_heads",
    "num_layers",
    "num_decoder_layers",
    "relative_attention_num_buckets",
    "feed_forward_proj",
    # BART and its like
    "encoder_layers",
    "decoder_layers",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "activation_function",
)
"""The settings that say of what shape a model is, apart from the rows of its embedding."""


def build_model(
    settings: ModelSettings,
    tokenizer: TextTokenizer,
    *,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = note,
    hosts: HostGroup | None = None,
) -> Any:
    """Return the model that a run trains, with its adapter where it gets one.

    Args:
        settings: What it is built from.
        tokenizer: The prepared folder's; each of its ids gets a row.
        checkpoint: The folder that its weights, or its adapter's, are read from; None: as new.
        say: Prints a note.
        hosts: The run's processes. The first one loads; the others have no weights until
            ``load_once.receive_weights``.

    Raises:
        ModelError: No such model, not an encoder-decoder, damaged, incomplete, or made for
            another vocabulary.
        ConfigError: The adapter's settings do not fit the model.
    """
    name, lora = base_name(settings.name), settings.lora
    hosts = hosts or HostGroup()
    from_checkpoint = checkpoint is not None and lora is None

    def load() -> Any:
        if checkpoint is not None and from_checkpoint:
            return load_trained(checkpoint)
        if settings.from_scratch:
            return init_model(
                name, tokenizer.vocab_size, cache_dir=settings.cache_dir, seed=settings.seed
            )
        return load_model(
            name,
            tokenizer,
            cache_dir=settings.cache_dir,
            may_grow=lora is None,
            quantized=quantization(settings.quantize, bf16=settings.bf16),
            say=say if checkpoint is None else lambda _: None,
        )

    # bitsandbytes quantizes on each process's own device, a matrix at a time.
    model = load() if settings.quantize else load_once(load, hosts)
    shown = str(checkpoint) if from_checkpoint else name
    _finish(model, shown, tokenizer, settings=settings)
    if lora is None:
        return model
    model = adapted(model, lora, tokenizer, name)
    if settings.bf16:
        hold_in_bfloat16(model)
    start = Path(settings.name) if checkpoint is None else checkpoint
    if is_adapter(start) and (hosts.rank == 0 or settings.quantize):
        with _model_errors(start):
            check_vocabulary(str(start), tokenizer, own_token_ids(str(start)))
            restore_adapter(model, start)
    return model


def model_structure(settings: ModelSettings, tokenizer: TextTokenizer) -> Any:
    """Return the model that ``build_model`` would, on the device ``meta``; no weights are read.

    Raises:
        ModelError: There is no config, or none of an encoder-decoder.
        ConfigError: The adapter's settings do not fit the model.
    """
    name, lora = base_name(settings.name), settings.lora
    with torch.device("meta"):
        model = init_model(name, tokenizer.vocab_size, cache_dir=settings.cache_dir)
        _finish(model, name, tokenizer, settings=settings)
        if lora is None:
            return model
        model = adapted(model, lora, tokenizer, name)
        if settings.bf16:
            hold_in_bfloat16(model)
        return model


def load_model(
    name: str,
    tokenizer: TextTokenizer,
    *,
    cache_dir: str | None = None,
    may_grow: bool = True,
    quantized: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = note,
) -> Any:
    """Return a trained model with a row for each id of the tokenizer.

    Args:
        name: A folder or a hub name.
        tokenizer: The prepared folder's.
        cache_dir: Where models from the hub are kept.
        may_grow: Whether its embedding may; that of an adapter's base may not.
        quantized: See ``quantizing.quantization``.
        say: Prints a note.

    Raises:
        ModelError: No such model, damaged, incomplete, or made for another vocabulary.
    """
    _read_config(name, cache_dir)
    with _model_errors(name), quiet_transformers():
        own_ids = own_token_ids(name, cache_dir)
        check_vocabulary(name, tokenizer, own_ids)
        model = _pretrained(name, cache_dir, **(quantized or {}))
        if own_ids is None:
            say("the model has no tokenizer of its own; new pieces start from the mean row")
        if not may_grow:
            check_rows(model, name, tokenizer)
        fit_embedding(model, tokenizer, own_ids)
    return model


def adapted(model: Any, lora: LoraSettings, tokenizer: TextTokenizer, name: str) -> Any:
    """Return a model with an adapter, whose config calls the model ``name``."""
    if Path(name).is_dir():
        name = str(Path(name).resolve())  # the adapter is loaded from other folders, too
    return add_adapter(model, lora, list(piece_ids(tokenizer).values()), name=name)


def load_trained(folder: Path) -> Any:
    """Return a model that was trained here, as it was saved; an adapter is merged into its base.

    Raises:
        ModelError: It cannot be loaded.
    """
    with _model_errors(folder), quiet_transformers():
        if is_adapter(folder):
            base = find_base(folder)
            with _model_errors(base):
                model = _pretrained(base, None)
            return merge_adapter(model, folder)
        return _pretrained(str(folder), None)


def architecture(name: str, cache_dir: str | None) -> str:
    """Return a name of the kind of model that a run starts from: a hash of its shape.

    A run whose output folder is the model's own writes ``config.json`` there anew, with defaults
    filled in and the embedding grown: what is hashed is the same before and after.

    Raises:
        ModelError: There is no config, or none that transformers knows.
    """
    from transformers import AutoConfig

    name = base_name(name)
    _read_config(name, cache_dir)
    with _model_errors(name), quiet_transformers():
        settings = AutoConfig.from_pretrained(name, cache_dir=cache_dir)
    return key_of({field: getattr(settings, field, None) for field in _SHAPE})


def base_weights(name: str, cache_dir: str | None) -> str:
    """Return a name of the weights that an adapter is trained on; see ``lora.name_of_weights``.

    Where that starts from an adapter, of both.

    Raises:
        ModelError: They cannot be read.
    """
    with _model_errors(name):
        weights = name_of_weights(base_name(name), cache_dir)
        if is_adapter(Path(name)):
            weights = key_of([weights, sha256_of_file(Path(name) / ADAPTER_FILES[0])])
        return weights


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


def _read_config(name: str, cache_dir: str | None) -> dict[str, Any]:
    path = find_model_file(name, "config.json", cache_dir)
    if path is None:
        raise ModelError(
            "not a model",
            where=name,
            got="no config.json",
            do="give a folder with config.json, or a hub name",
        )
    with _model_errors(path):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ModelError(
            "a model's config has a wrong shape",
            where=path,
            got=type(value).__name__,
            do="copy the model's folder again",
        )
    return value


@contextlib.contextmanager
def _model_errors(where: object) -> Iterator[None]:
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

    model, info = AutoModelForSeq2SeqLM.from_pretrained(
        name,
        cache_dir=cache_dir,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that the first of them can be named, below
        **quantized,
    )
    if info["mismatched_keys"]:
        weight, found, wanted = sorted(info["mismatched_keys"])[0]
        raise ModelError(
            "the model's weights are not those that its config.json describes",
            where=name,
            got=f"{weight} of shape {list(found)}, not {list(wanted)}",
            do="copy the model's folder again",
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            "the model's weights are incomplete",
            where=name,
            got=f"no {missing[0]}, {len(missing)} missing in all",
            do="give a complete encoder-decoder model",
        )
    return model if quantized else model.float()


def init_model(name: str, vocab_size: int, *, cache_dir: str | None = None, seed: int = 42) -> Any:
    """Return a model with fresh weights, made from a model's config alone.

    Args:
        name: A folder or a hub name.
        vocab_size: The rows that its embedding has at least.
        cache_dir: Where models from the hub are kept.
        seed: Of the weights.

    Raises:
        ModelError: There is no config, or none of an encoder-decoder.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    raw = _read_config(name, cache_dir)
    auto: Any = AutoModelForSeq2SeqLM
    with _model_errors(name), quiet_transformers():
        settings = AutoConfig.from_pretrained(name, cache_dir=cache_dir)
        if settings.vocab_size < vocab_size:
            settings.vocab_size = rows_for(vocab_size)
        torch.manual_seed(seed)
        model = auto.from_config(settings).float()
        if raw.get("tie_word_embeddings") is False and is_tied(model):
            _untie(model)
    return model


def _untie(model: Any) -> None:
    """Give the output a matrix of its own, which transformers withholds from a fresh T5."""
    output = model.get_output_embeddings()
    # Flan-T5 does not scale the decoder's output: with the usual 1.0 logits would start at a
    # spread of sqrt(d_model) and the loss far above the logarithm of the vocabulary.
    spread = getattr(model.config, "initializer_factor", 1.0) * output.in_features**-0.5
    output.weight = nn.Parameter(torch.randn_like(output.weight) * spread)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is output.weight:
            tied.pop(name, None)


def _finish(model: Any, name: str, tokenizer: TextTokenizer, *, settings: ModelSettings) -> None:
    """Check what training relies on, complete the generation config, make it fast."""
    check_rows(model, name, tokenizer)
    config, generation = model.config, model.generation_config
    start = getattr(config, "decoder_start_token_id", None)
    start = generation.decoder_start_token_id if start is None else start
    if start is None:
        raise ModelError(
            "the model does not say what its decoder starts with",
            where=name,
            got="no decoder_start_token_id",
            do="set it in config.json (T5: 0)",
        )
    config.decoder_start_token_id = generation.decoder_start_token_id = start
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.eos_id  # masked wherever it stands
    generation.pad_token_id = config.pad_token_id
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_id
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    share_bias(model)
    fuse_layers(model)


def set_dropout(model: Any, rate: float) -> None:
    """Set the dropout rate of all of a model's layers, and of its config."""
    for name in ("dropout_rate", "dropout"):  # T5's, BART's
        if hasattr(model.config, name):
            setattr(model.config, name, rate)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):  # of attention weights
            module.dropout = rate


def checkpoint_activations(model: Any) -> None:
    """Keep each layer's input alone and compute the rest again in the backward pass."""
    kwargs = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name in later transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
