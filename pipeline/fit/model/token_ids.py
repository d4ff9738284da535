"""The ids that a model's own tokenizer gives to its tokens, and a row for each of the data's.

    tokenizer.json | spiece.model, added_tokens.json, tokenizer_config.json  ->  {token: id}

Read rather than loaded, because what the lossless tokenizer replaces need not load at all, and a
model that was extended the old way keeps its trained rows under these ids. Only a tokenizer that
is no T5's and has no ``tokenizer.json`` is loaded: its files alone do not tell its ids.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ModelError
from pipeline.fit.model.embedding import carry_over_rows, grow_embedding, num_rows
from pipeline.hub.download import find_model_file
from pipeline.json_object import read_json_object
from pipeline.tokenizer import VOCABULARY_FILES, TextTokenizer, load_tokenizer, lossless
from pipeline.tokenizer.lossless import is_lossless
from pipeline.tokenizer.vocabulary import NEW_PIECES, vocabulary_of_spiece

T = TypeVar("T")


def model_token_ids(name_or_path: str, cache_dir: str | None = None) -> dict[str, int] | None:
    """Return the ids of a model's own tokens, added ones too; None where it has no tokenizer.

    Raises:
        ModelError: The model cannot be found, or one of the files cannot be read.
        TokenizerError: ``spiece.model`` is no SentencePiece model, or a tokenizer that is no T5's
            cannot be loaded.
    """
    names = (*VOCABULARY_FILES, *_ADDED)
    paths = {name: find_model_file(name_or_path, name, cache_dir) for name in names}
    spec = paths["tokenizer.json"]
    if spec is not None and _read(_is_lossless, spec):
        # It is complete: what an older tokenizer left beside it says nothing any more.
        return _read(_ids_of_json, spec)
    if not any(paths[name] is not None for name in VOCABULARY_FILES):
        return None
    ids = _base_ids(name_or_path, cache_dir, paths)
    for name, reader in _ADDED.items():
        path = paths[name]
        if path is not None:
            ids |= _read(reader, path)
    return ids


def eos_ids(tokenizer: TextTokenizer, model: Any) -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's, and those of a model's settings."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    also = named if isinstance(named, list) else [] if named is None else [named]
    return frozenset([tokenizer.eos_id, *also])


def _base_ids(
    name_or_path: str, cache_dir: str | None, paths: Mapping[str, Path | None]
) -> dict[str, int]:
    spec, spiece = paths["tokenizer.json"], paths["spiece.model"]
    if spec is not None:
        return _read(_ids_of_json, spec)
    if spiece is not None and (ids := _read(_ids_of_spiece, spiece)):
        return ids
    return dict(load_tokenizer(name_or_path, cache_dir).backend.get_vocab())


def _read(reader: Callable[[Path], T], path: Path) -> T:
    try:
        return reader(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            "a tokenizer's file cannot be read",
            where=path,
            got=repr(error),
            do="copy the model's folder again",
        ) from error


def _is_lossless(path: Path) -> bool:
    return lossless.is_lossless(read_json_object(path))


def _ids_of_json(path: Path) -> dict[str, int]:
    spec = read_json_object(path)
    vocabulary = (spec.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        ids = {str(token): int(i) for token, i in vocabulary.items()}
    else:
        ids = {str(piece): i for i, (piece, _) in enumerate(vocabulary)}
    if not ids:
        raise ValueError("no vocabulary in it")
    added = spec.get("added_tokens") or []
    return ids | {str(token["content"]): int(token["id"]) for token in added}


def _ids_of_spiece(path: Path) -> dict[str, int]:
    """Return the ids of a T5's or mT5's pieces; nothing where they are another model's."""
    if not path.stat().st_size:
        raise ValueError("an empty file")
    vocabulary = vocabulary_of_spiece(path)
    pieces = vocabulary.pieces if vocabulary is not None else []
    return {piece: i for i, (piece, _) in enumerate(pieces)}


def _ids_of_added_tokens(path: Path) -> dict[str, int]:
    return {str(token): int(i) for token, i in read_json_object(path).items()}


def _ids_of_config(path: Path) -> dict[str, int]:
    decoder = read_json_object(path).get("added_tokens_decoder") or {}
    return {str(token["content"]): int(i) for i, token in decoder.items()}


_ADDED: dict[str, Callable[[Path], dict[str, int]]] = {
    "added_tokens.json": _ids_of_added_tokens,
    "tokenizer_config.json": _ids_of_config,
}


def check_vocabulary(name: str, tokenizer: TextTokenizer, own_ids: dict[str, int] | None) -> None:
    """Refuse rows that were made with another model's vocabulary: every id would be wrong.

    Tokens that the model's own tokenizer does not have must not take the id of one that it has.
    The nine pieces may, for their rows are moved, and so may sentinels, which no text holds.
    """
    if own_ids is None:
        return
    moved = NEW_PIECES if _has_pieces(tokenizer) else ()
    own_tokens = {i: token for token, i in own_ids.items()}
    for token, i in tokenizer.backend.get_vocab().items():
        if token in moved or own_ids.get(token) == i:
            continue
        if token not in own_ids and (i not in own_tokens or token.startswith("<extra_id_")):
            continue
        there = f"id {own_ids[token]}" if token in own_ids else "no token"
        raise ModelError(
            "the data were prepared for another model",
            where=name,
            got=f"{token!r} is {there} there, id {i} in the data",
            do=f"run duet prepare with --model-name-or-path {name}",
        )


def fit_embedding(model: Any, tokenizer: TextTokenizer, own_ids: dict[str, int] | None) -> None:
    """Give each id of the tokenizer a row: grown, started or moved where it has none."""
    rows, pieces = num_rows(model), piece_ids(tokenizer)
    known = max(own_ids.values()) + 1 if own_ids is not None else first_new_id(tokenizer)
    num_trained = min(known, rows)
    grow_embedding(model, tokenizer.vocab_size, num_trained)
    old = {token: i for token, i in (own_ids or {}).items() if token in pieces and i < rows}
    carry_over_rows(model, old, pieces, num_trained)


def first_new_id(tokenizer: TextTokenizer) -> int:
    """Return the first id that a model need not know: of the nine pieces, those that stand last."""
    new, first = set(piece_ids(tokenizer).values()), tokenizer.vocab_size
    while first - 1 in new:
        first -= 1
    return first


def piece_ids(tokenizer: TextTokenizer) -> dict[str, int]:
    """Return the ids of the lossless tokenizer's nine pieces; none where it is another one."""
    if not _has_pieces(tokenizer):
        return {}
    vocabulary = tokenizer.backend.get_vocab()
    return {piece: vocabulary[piece] for piece in NEW_PIECES}


def _has_pieces(tokenizer: TextTokenizer) -> bool:
    return is_lossless(read_json_object(tokenizer.files["tokenizer.json"]))


def check_rows(model: Any, name: str, tokenizer: TextTokenizer) -> None:
    """Refuse a model without a row for each id: an adapter cannot add rows to its base."""
    if num_rows(model) < tokenizer.vocab_size:
        raise ModelError(
            "the model has too few embedding rows",
            where=name,
            got=num_rows(model),
            do=f"give a model with {tokenizer.vocab_size} or more",
        )
