"""A tokenizer's files: which there are, found, read, made and copied."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import TokenizerError
from pipeline.hub.download import find_model_file
from pipeline.hub.model_files import ADDED, CONFIG, SPECIAL, TOKENIZER_FILES
from pipeline.json_object import read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Files = dict[str, bytes]
"""File names and contents."""


def own_files(name_or_path: str, cache_dir: str | None) -> Files:
    """Return the files of a model's tokenizer, by name."""
    paths = {name: find_model_file(name_or_path, name, cache_dir) for name in TOKENIZER_FILES}
    return {name: path.read_bytes() for name, path in paths.items() if path is not None}


def converted_files(name_or_path: str, cache_dir: str | None) -> Files:
    """Let transformers make the fast tokenizer where a model ships without one."""
    # Imported late: mT5 and its like come as spiece.model alone.
    from transformers import AutoTokenizer

    with _transformers_errors(name_or_path), tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, cache_dir=cache_dir, use_fast=True)
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    if "tokenizer.json" not in files:
        raise TokenizerError(
            "the model has no fast tokenizer",
            where=name_or_path,
            got=type(tokenizer).__name__,
            do="give a model whose tokenizer has a fast form",
        )
    return files


def special_tokens(files: Files, where: str) -> dict[str, str]:
    """Return what transformers hands to a tokenizer's chat template: ``bos_token`` and the like."""
    from transformers import AutoTokenizer

    with _transformers_errors(where), tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return dict(AutoTokenizer.from_pretrained(folder).special_tokens_map)


def named_special_tokens(files: Files, where: str) -> dict[str, str]:
    """Return the special tokens that files name, with their names, as transformers reads them."""
    config, older = (read_json(files.get(n, b"{}"), f"{where}/{n}") for n in (CONFIG, SPECIAL))
    said = older | config if "added_tokens_decoder" in config else config | older
    named = said.get("extra_special_tokens")
    tokens = {name: token for name, token in said.items() if name.endswith("_token")}
    tokens |= named if isinstance(named, dict) else {}
    texts = {name: _text_of(token) for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if text is not None}


def added_tokens(files: Files, where: str) -> set[str]:
    """Return every token that files name beside a vocabulary: special ones, and added ones."""
    said = {n: read_json(files.get(n, b"{}"), f"{where}/{n}") for n in (CONFIG, SPECIAL, ADDED)}
    tokens: list[Any] = [*said[ADDED], *named_special_tokens(files, where).values()]
    for name in (CONFIG, SPECIAL):
        tokens += (said[name].get("added_tokens_decoder") or {}).values()
        for lists in ("additional_special_tokens", "extra_special_tokens"):
            listed = said[name].get(lists)
            tokens += listed if isinstance(listed, list) else []
    if "tokenizer.json" in files:
        tokens += read_json(files["tokenizer.json"], where).get("added_tokens") or []
    return {text for token in tokens if (text := _text_of(token)) is not None}


def _text_of(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def parse_tokenizer(text: str, where: object) -> "Tokenizer":
    """Return the fast tokenizer that a ``tokenizer.json`` describes; it neither cuts nor pads.

    Raises:
        TokenizerError: It cannot be read; ``where`` names it.
    """
    # Imported late: a process that only hands a tokenizer on does without it.
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(
            "the tokenizer cannot be read",
            where=where,
            got=error,
            do="copy the model's folder again",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextlib.contextmanager
def _transformers_errors(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever transformers meets there
        raise TokenizerError(
            "the model has no tokenizer that can be used",
            where=where,
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            do="give a folder with tokenizer.json or spiece.model",
        ) from error


def read_json(source: Path | bytes, where: object) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        TokenizerError: It is none, or cannot be read; ``where`` names it.
    """
    try:
        return read_json_object(source)
    except (OSError, ValueError) as error:
        raise unreadable(where, error) from error


def unreadable(where: object, error: Exception) -> TokenizerError:
    """Return the one line that says that a model's file cannot be read."""
    return TokenizerError(
        "a model's file cannot be read",
        where=where,
        got=error,
        do="copy the model's folder again",
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a saved tokenizer's files into another folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
