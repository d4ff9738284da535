"""The ids that a model's own tokenizer gives to its tokens, read from its files.

    tokenizer.json | spiece.model, added_tokens.json, tokenizer_config.json  ->  {token: id}

Read rather than loaded, because what the lossless tokenizer replaces need not load at all, and a
model that was extended the old way keeps its trained rows under these ids.
"""

import json
from pathlib import Path
from typing import Any

from pipeline import lossless
from pipeline.errors import ModelError
from pipeline.hub import find_model_file


def own_token_ids(name_or_path: str, cache_dir: str | None = None) -> dict[str, int] | None:
    """Return the ids of a model's own tokens, added ones too; None where it has no tokenizer.

    Args:
        name_or_path: A folder, or a name on the hub.
        cache_dir: Where files from the hub are kept.

    Raises:
        ModelError: The model cannot be found, or one of the files cannot be read.
        TokenizerError: ``spiece.model`` is no SentencePiece model.
    """
    paths = {name: find_model_file(name_or_path, name, cache_dir) for name in _READERS}
    ids: dict[str, int] = {}
    for name, path in paths.items():
        if path is None or (name == "spiece.model" and paths["tokenizer.json"] is not None):
            continue
        try:
            ids |= _READERS[name](path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                "a tokenizer's file cannot be read",
                where=path,
                got=repr(error),
                do="copy the model's folder again",
            ) from error
    return ids or None


def _ids_of_json(path: Path) -> dict[str, int]:
    spec = _load(path)
    vocabulary = (spec.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        ids = {str(token): int(i) for token, i in vocabulary.items()}
    else:
        ids = {str(piece): i for i, (piece, _) in enumerate(vocabulary)}
    added = spec.get("added_tokens") or []
    return ids | {str(token["content"]): int(token["id"]) for token in added}


def _ids_of_spiece(path: Path) -> dict[str, int]:
    vocabulary = lossless.vocabulary_of_spiece(path)
    pieces = vocabulary.pieces if vocabulary is not None else []
    return {piece: i for i, (piece, _) in enumerate(pieces)}


def _ids_of_added_tokens(path: Path) -> dict[str, int]:
    return {str(token): int(i) for token, i in _load(path).items()}


def _ids_of_config(path: Path) -> dict[str, int]:
    decoder = _load(path).get("added_tokens_decoder") or {}
    return {str(token["content"]): int(i) for i, token in decoder.items()}


def _load(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


_READERS = {
    "tokenizer.json": _ids_of_json,
    "spiece.model": _ids_of_spiece,
    "added_tokens.json": _ids_of_added_tokens,
    "tokenizer_config.json": _ids_of_config,
}
