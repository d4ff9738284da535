"""A model's folder or name to the tokenizer that its rows are made with."""

import json
import tempfile
from typing import Any

from pipeline import lossless
from pipeline.errors import TokenizerError
from pipeline.hub import find_model_file
from pipeline.template import chat_template
from pipeline.tokenizer.files import VOCABULARY_FILES, converted_files, own_files, read_json
from pipeline.tokenizer.text import TextTokenizer


def load_tokenizer(name_or_path: str, cache_dir: str | None = None) -> TextTokenizer:
    """Load the tokenizer that a model's rows are made with.

    Args:
        name_or_path: A folder with a tokenizer's files, or a name on the hub.
        cache_dir: Where files from the hub are kept.

    Raises:
        ModelError: The model cannot be found.
        TokenizerError: It has no tokenizer, or a broken one.
    """
    spec_path = find_model_file(name_or_path, "tokenizer.json", cache_dir)
    spec = read_json(spec_path, spec_path) if spec_path else None
    if spec is not None and lossless.is_lossless(spec):
        return _own_fast_tokenizer(own_files(name_or_path, cache_dir), name_or_path)
    if _model_type(name_or_path, cache_dir) in (None, "t5"):
        vocabulary = lossless.vocabulary_of_json(spec) if spec is not None else None
        spiece = find_model_file(name_or_path, "spiece.model", cache_dir)
        if vocabulary is None and spiece is not None:
            vocabulary = lossless.vocabulary_of_spiece(spiece)
        if vocabulary is not None:
            return _lossless_tokenizer(vocabulary)
    files = own_files(name_or_path, cache_dir)
    if not any(name in files for name in VOCABULARY_FILES):
        # transformers would make a tokenizer of nothing.
        raise TokenizerError(
            "the model has no tokenizer",
            where=name_or_path,
            got="none of " + ", ".join(VOCABULARY_FILES),
            do="copy the tokenizer's files beside the model",
        )
    if "tokenizer.json" not in files:
        files = converted_files(name_or_path, cache_dir)
    return _own_fast_tokenizer(files, name_or_path, _decoder_start_id(name_or_path, cache_dir))


def tokenizer_of(tokenizer: Any) -> TextTokenizer:
    """Return the TextTokenizer of a transformers tokenizer (stock T5's becomes lossless)."""
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return load_tokenizer(folder)


def _lossless_tokenizer(vocabulary: lossless.T5Vocabulary) -> TextTokenizer:
    text = lossless.build_json(vocabulary)
    sentinels = [f"<extra_id_{i}>" for i in range(vocabulary.num_sentinels)]
    config = {
        # The class that adds nothing of its own to what tokenizer.json says.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": sentinels,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": True,
        "chat_template": chat_template(),
    }
    files = {
        "tokenizer.json": text.encode("utf-8"),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False).encode("utf-8"),
    }
    return TextTokenizer(files, "</s>", "<unk>", "T5's vocabulary")


def _own_fast_tokenizer(
    files: dict[str, bytes], where: str, decoder_start_id: int | None = None
) -> TextTokenizer:
    special: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            special |= read_json(files[name], f"{where}/{name}")
    eos, unk = (_content(special.get(name)) for name in ("eos_token", "unk_token"))
    return TextTokenizer(files, eos, unk, where, decoder_start_id)


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _model_type(name_or_path: str, cache_dir: str | None) -> str | None:
    path = find_model_file(name_or_path, "config.json", cache_dir)
    value = (read_json(path, path) if path else {}).get("model_type")
    return value if isinstance(value, str) else None


def _decoder_start_id(name_or_path: str, cache_dir: str | None) -> int | None:
    path = find_model_file(name_or_path, "config.json", cache_dir)
    value = (read_json(path, path) if path else {}).get("decoder_start_token_id")
    return value if isinstance(value, int) else None
