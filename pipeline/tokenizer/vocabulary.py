r"""SentencePiece's Unigram vocabularies of T5's kind, from ``tokenizer.json`` or ``spiece.model``.

T5's own has 32,000 pieces and 100 sentinels; mT5's kind has a piece for each byte as well, of which
characters without a piece are made.
"""

import base64
import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import TokenizerError

NEW_PIECES = ("\n", "\t", "<", "\\", "^", "`", "{", "}", "~")
"""The pieces that T5's vocabulary lacks, in the order of their ids."""

SPECIALS = ("<pad>", "</s>", "<unk>")
SPACE = "\u2581"
_START = "<s>"
_NUM_SENTINELS = 100
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
KINDS = {"<0x41>": r"0x[0-9A-F]{2}>", "<extra_id_0>": r"extra_id_[0-9]+>"}
"""Tokens of which there are hundreds, by one of them: a pattern of all but the first character."""


@dataclass(frozen=True)
class Vocabulary:
    """Pieces and scores in id order, and the character map."""

    pieces: list[tuple[str, float]]
    charsmap: bytes

    @property
    def num_sentinels(self) -> int:
        """How many of the last pieces are ``<extra_id_…>``."""
        count = 0
        while count < len(self.pieces) and is_sentinel(self.pieces[-1 - count][0]):
            count += 1
        return count

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each piece."""
        return dict(zip([piece for piece, _ in self.pieces], itertools.count(), strict=False))

    @functools.cached_property
    def has_bytes(self) -> bool:
        """Whether characters that are no pieces become pieces of their bytes."""
        return self.ids.keys() >= set(BYTES)

    @property
    def is_t5(self) -> bool:
        """Whether it is T5's: its first pieces, its sentinels, and no bytes."""
        starts_right = tuple(piece for piece, _ in self.pieces[:3]) == SPECIALS
        return starts_right and self.num_sentinels > 0 and not self.has_bytes

    @property
    def is_mt5(self) -> bool:
        """Whether it is of mT5's kind."""
        return self.has_bytes and self.ids.keys() >= set(SPECIALS)

    @property
    def controls(self) -> list[int]:
        """The ids of control tokens."""
        first_sentinel = len(self.pieces) - self.num_sentinels
        named = sorted(self.ids[p] for p in (*SPECIALS, _START) if p in self.ids)
        return [*named, *range(first_sentinel, len(self.pieces))]

    def with_new_pieces(self) -> "Vocabulary":
        """Return it with those of the nine pieces that it lacks behind the rest.

        Their score decides nothing: each is the only piece that covers its character.
        """
        new = [(piece, 0.0) for piece in NEW_PIECES if piece not in self.ids]
        return Vocabulary(self.pieces + new, self.charsmap)


def is_sentinel(piece: str) -> bool:
    """Return whether a piece is one of T5's ``<extra_id_…>``."""
    return piece.startswith("<extra_id_") and piece.endswith(">")


def kind_of(token: str) -> str | None:
    """Return the pattern of a token's kind, where it is one of many."""
    return next((p for p in KINDS.values() if re.fullmatch(f"{SPACE}?<{p}", token)), None)


def parting_pattern(tokens: Iterable[str]) -> str:
    """Return a pattern of the first characters of tokens that have the rest behind them.

    >>> parting_pattern(["</s>", "<pad>", "<0x41>"])
    '<(?=/s>|pad>|0x[0-9A-F]{2}>)'
    """
    rests: dict[str, list[str]] = {}
    for token in tokens:
        rests.setdefault(token[0], []).append(kind_of(token) or re.escape(token[1:]))
    return "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())


def vocabulary_of_json(spec: dict[str, Any]) -> Vocabulary | None:
    """Return the vocabulary in a ``tokenizer.json``, or None where it is neither T5's nor mT5's."""
    model = spec.get("model") or {}
    charsmap = charsmap_of(spec.get("normalizer"))
    if model.get("type") != "Unigram" or charsmap is None or not model.get("vocab"):
        return None
    pieces = [(piece, float(score)) for piece, score in model["vocab"]]
    # Tokens that were added later (by older remedies, too) are no part of the vocabulary.
    known = {piece for piece, _ in pieces}
    for token in sorted(spec.get("added_tokens") or [], key=lambda token: int(token["id"])):
        content = str(token["content"])
        if token["id"] == len(pieces) and content not in known and is_sentinel(content):
            pieces.append((content, 0.0))
    return _checked(Vocabulary(pieces, charsmap))


def vocabulary_of_spiece(path: Path) -> Vocabulary | None:
    """Return the vocabulary in a ``spiece.model``, or None where it is neither T5's nor mT5's.

    Raises:
        TokenizerError: The file is no SentencePiece model.
    """
    spm = protobuf()
    proto = spm.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError is not importable in every version
        raise TokenizerError(
            "not a SentencePiece model", where=path, got=error, do="copy the model's folder again"
        ) from error
    if proto.trainer_spec.model_type != spm.TrainerSpec.UNIGRAM:
        return None
    pieces = [(p.piece, float(p.score)) for p in proto.pieces]
    has_sentinels = any(is_sentinel(piece) for piece, _ in pieces)
    if not (has_sentinels or proto.trainer_spec.byte_fallback):
        pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(_NUM_SENTINELS))]
    return _checked(Vocabulary(pieces, proto.normalizer_spec.precompiled_charsmap))


def protobuf() -> Any:
    """Return the module that SentencePiece's models are read and written with."""
    # Imported late: a preparation that is found again does without it.
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2


def _checked(vocabulary: Vocabulary) -> Vocabulary | None:
    return vocabulary if vocabulary.is_t5 or vocabulary.is_mt5 else None


def charsmap_of(normalizer: dict[str, Any] | None) -> bytes | None:
    """Return the character map of a ``tokenizer.json``'s normaliser; None: it has none."""
    if normalizer is None:
        return None
    for part in normalizer.get("normalizers", [normalizer]):
        if part.get("type") == "Precompiled" and part.get("precompiled_charsmap"):
            return base64.b64decode(part["precompiled_charsmap"])
    return None
