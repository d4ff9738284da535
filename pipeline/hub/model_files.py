"""The names of a model's files, and which of them a tokenizer is made of."""

from pathlib import Path

from pipeline.hub.download import find_model_file

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    CONFIG,
    "spiece.model",
    SPECIAL,
    ADDED,
    TEMPLATE,
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Every file that a tokenizer may consist of."""
_OF_MODEL = ("config.json", "generation_config.json")
"""Files of a model that say what a row begins and ends with."""

VOCABULARY_FILES = (
    "tokenizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.json",
)
"""Those that hold its vocabulary: a tokenizer has one of them at least."""


def source_files(name_or_path: str, cache_dir: str | None = None) -> list[Path]:
    """Return the files that decide which tokenizer ``load_tokenizer`` gives.

    Raises:
        ModelError: The model cannot be found.
    """
    found = (
        find_model_file(name_or_path, name, cache_dir) for name in (*TOKENIZER_FILES, *_OF_MODEL)
    )
    return [path for path in found if path is not None]
