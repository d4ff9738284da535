"""A tokenizer's files: which there are, found, read, made and copied."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import TokenizerError
from pipeline.hub import find_model_file
from pipeline.json_object import read_json_object

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Every file that a tokenizer may consist of."""

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
        find_model_file(name_or_path, name, cache_dir) for name in (*TOKENIZER_FILES, "config.json")
    )
    return [path for path in found if path is not None]


def own_files(name_or_path: str, cache_dir: str | None) -> dict[str, bytes]:
    """Return the files of a model's tokenizer, by name."""
    paths = {name: find_model_file(name_or_path, name, cache_dir) for name in TOKENIZER_FILES}
    return {name: path.read_bytes() for name, path in paths.items() if path is not None}


def converted_files(name_or_path: str, cache_dir: str | None) -> dict[str, bytes]:
    """Let transformers make the fast tokenizer where a model ships without one."""
    # The one place that needs transformers: mT5 and its like come as spiece.model alone.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, cache_dir=cache_dir, use_fast=True)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    except Exception as error:  # whatever transformers meets there
        raise TokenizerError(
            "the model has no tokenizer that can be used",
            where=name_or_path,
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            do="give a folder with tokenizer.json or spiece.model",
        ) from error
    if "tokenizer.json" not in files:
        raise TokenizerError(
            "the model has no fast tokenizer",
            where=name_or_path,
            got=type(tokenizer).__name__,
            do="give a model whose tokenizer has a fast form",
        )
    return files


def read_json(source: Path | bytes, where: object) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        TokenizerError: It is none, or cannot be read; ``where`` names it.
    """
    try:
        return read_json_object(source)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            "a model's file cannot be read",
            where=where,
            got=error,
            do="copy the model's folder again",
        ) from error


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a saved tokenizer's files into another folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
