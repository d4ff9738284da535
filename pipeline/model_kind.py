"""What kind of model a folder or hub name is, by its config alone: before anything is made.

Only encoder-decoders that read and write the ids of a text tokenizer can be prepared for and
trained. Neither torch nor transformers is needed to tell.
"""

from typing import Any

from pipeline.errors import ModelError
from pipeline.hub.download import find_model_file
from pipeline.json_object import read_json_object

_ENCODER_DECODERS = frozenset(
    {
        *("t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma", "t5gemma2"),
        *("bart", "mbart", "mvp", "plbart", "led", "pegasus", "pegasus_x", "bigbird_pegasus"),
        *("blenderbot", "blenderbot-small", "marian", "m2m_100", "nllb-moe", "fsmt", "prophetnet"),
    }
)
"""Types whose configs need not say that they are: a config written by hand leaves it out."""
_OF_BYTES = frozenset({"ByT5Tokenizer"})
"""Tokenizers that have no vocabulary: their ids are bytes."""


def check_model_kind(name: str, cache_dir: str | None = None) -> None:
    """Refuse a model that is no encoder-decoder, or has no tokenizer of texts.

    Args:
        name: A folder or a hub name; one without ``config.json`` passes, as do tokenizers alone.
        cache_dir: Where files from the hub are kept.

    Raises:
        ModelError: It is one of these, or cannot be found.
    """
    config = _read(name, "config.json", cache_dir)
    kind = config.get("model_type")
    known = kind in _ENCODER_DECODERS or bool(config.get("is_encoder_decoder"))
    if isinstance(kind, str) and not known:
        raise ModelError(
            "the model is not an encoder-decoder",
            where=name,
            got=f"model_type {kind}",
            do="give a T5, or another model that transformers loads as AutoModelForSeq2SeqLM",
        )
    settings = _read(name, "tokenizer_config.json", cache_dir)
    tokenizer = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if tokenizer in _OF_BYTES:
        raise ModelError(
            "the model reads bytes, and has no vocabulary to prepare rows with",
            where=name,
            got=f"tokenizer_class {tokenizer}",
            do="give a model with a text tokenizer, such as google/mt5-base",
        )


def _read(name: str, file: str, cache_dir: str | None) -> dict[str, Any]:
    """Return a JSON object; nothing where it is missing or broken, which others say better."""
    path = find_model_file(name, file, cache_dir)
    try:
        return read_json_object(path) if path is not None else {}
    except (OSError, ValueError):
        return {}
