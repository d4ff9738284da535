r"""Builds the lossless T5 tokenizer from T5's own vocabulary.

T5's stock tokenizer drops newlines, tabs and runs of spaces and has no ``< \ ^ ` { } ~``: code
cannot survive it. Here the nine missing pieces take the ids behind the sentinels (32,100 to
32,108 in Flan-T5, in rows that the model's embedding has spare), a space is T5's own ``▁``, and
each line starts with T5's dummy ``▁`` like every text does. The usual remedy, the pieces as
ordinary added tokens with one for the space, costs 47 % more tokens on real answers, and
``decode`` gives them back only with options that few know (``benchmarks/reference.py``).

The parts, all stock classes of ``tokenizers``:

- the pieces are entries of the Unigram vocabulary; newline and tab are added tokens too, so that
  they are taken out before the normaliser, which would make spaces of them;
- normaliser: T5's character map, then the dummy ``▁``, then ``▁`` for each space;
- pre-tokenizer: split before each ``▁``, then at each ``<``, alone. Without that, ``</s>`` and the
  sentinels, which are Unigram entries, would come out of a text as control ids;
- decoder: join, drop the dummy of each line, ``▁`` back to a space.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.charsmap import ends_lines, starts_lines
from pipeline.errors import TokenizerError

NEW_PIECES = ("\n", "\t", "<", "\\", "^", "`", "{", "}", "~")
"""The pieces that T5's vocabulary lacks, in the order of their ids."""

SPECIALS = ("<pad>", "</s>", "<unk>")
SPACE = "\u2581"
_NUM_SENTINELS = 100


@dataclass(frozen=True, slots=True)
class T5Vocabulary:
    """What makes a T5 tokenizer: pieces and scores in id order, sentinels last, and the map."""

    pieces: list[tuple[str, float]]
    charsmap: bytes

    @property
    def num_sentinels(self) -> int:
        """How many of the last pieces are ``<extra_id_…>``."""
        count = 0
        while count < len(self.pieces) and _is_sentinel(self.pieces[-1 - count][0]):
            count += 1
        return count


def _is_sentinel(piece: str) -> bool:
    return piece.startswith("<extra_id_") and piece.endswith(">")


def vocabulary_of_json(spec: dict[str, Any]) -> T5Vocabulary | None:
    """Return the T5 vocabulary in a ``tokenizer.json``, or None where it is no T5's."""
    model = spec.get("model") or {}
    if model.get("type") != "Unigram" or model.get("byte_fallback"):
        return None
    pieces = [(piece, float(score)) for piece, score in model["vocab"]]
    # Tokens that were added later (by older remedies, too) are no part of T5's vocabulary.
    known = {piece for piece, _ in pieces}
    for token in sorted(spec.get("added_tokens") or [], key=lambda token: int(token["id"])):
        content = str(token["content"])
        if token["id"] == len(pieces) and content not in known and _is_sentinel(content):
            pieces.append((content, 0.0))
    charsmap = _charsmap(spec.get("normalizer"))
    return _checked(T5Vocabulary(pieces, charsmap)) if charsmap is not None else None


def vocabulary_of_spiece(path: Path) -> T5Vocabulary | None:
    """Return the T5 vocabulary in a ``spiece.model``, or None where it is no T5's.

    Raises:
        TokenizerError: The file is no SentencePiece model.
    """
    spm = _protobuf()
    proto = spm.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError is not importable in every version
        raise TokenizerError(
            "not a SentencePiece model", where=path, got=error, do="copy the model's folder again"
        ) from error
    if proto.trainer_spec.byte_fallback:
        return None
    pieces = [(p.piece, float(p.score)) for p in proto.pieces]
    if not any(_is_sentinel(piece) for piece, _ in pieces):
        pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(_NUM_SENTINELS))]
    return _checked(T5Vocabulary(pieces, proto.normalizer_spec.precompiled_charsmap))


def _checked(vocabulary: T5Vocabulary) -> T5Vocabulary | None:
    starts_right = tuple(piece for piece, _ in vocabulary.pieces[:3]) == SPECIALS
    # mT5's vocabulary starts like T5's, but has a piece for each byte.
    has_bytes = any(piece == "<0x0A>" for piece, _ in vocabulary.pieces[:300])
    is_t5 = starts_right and vocabulary.num_sentinels and not has_bytes
    return vocabulary if is_t5 else None


def _charsmap(normalizer: dict[str, Any] | None) -> bytes | None:
    if normalizer is None:
        return None
    for part in normalizer.get("normalizers", [normalizer]):
        if part.get("type") == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return None


def is_lossless(spec: dict[str, Any]) -> bool:
    """Tell whether a ``tokenizer.json`` is this tokenizer already."""
    charsmap = _charsmap(spec.get("normalizer"))
    if charsmap is None or (spec.get("model") or {}).get("type") != "Unigram":
        return False
    pieces = {piece for piece, _ in spec["model"]["vocab"]}
    return (
        pieces.issuperset(NEW_PIECES)
        and spec["normalizer"] == _normalizer(charsmap)
        and spec["pre_tokenizer"] == _pre_tokenizer()
    )


def vocabulary_of_lossless(spec: dict[str, Any]) -> T5Vocabulary:
    """Return the pieces, the nine new ones included, of a ``tokenizer.json`` that is lossless."""
    pieces = [(piece, float(score)) for piece, score in spec["model"]["vocab"]]
    return T5Vocabulary(pieces, _charsmap(spec["normalizer"]) or b"")


def build_json(vocabulary: T5Vocabulary) -> str:
    """Return the lossless tokenizer as the text of a ``tokenizer.json``."""
    pieces = with_new_pieces(vocabulary)
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    first_sentinel = len(vocabulary.pieces) - vocabulary.num_sentinels
    controls = [*range(len(SPECIALS)), *range(first_sentinel, len(vocabulary.pieces))]
    added = [_added_token(pieces[i][0], i, special=True) for i in controls]
    added += [_added_token(piece, ids[piece], special=False) for piece in ("\n", "\t")]
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": _normalizer(vocabulary.charsmap),
        "pre_tokenizer": _pre_tokenizer(),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_sequence("A"), _eos()],
            "pair": [_sequence("A"), _eos(), _sequence("B"), _eos()],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Fuse"},
                _replace("\n" + SPACE, "\n"),
                _replace("\t" + SPACE, "\t"),
                _replace(SPACE, " "),
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }
    return json.dumps(spec, ensure_ascii=False)


def with_new_pieces(vocabulary: T5Vocabulary) -> list[tuple[str, float]]:
    """Return all pieces in id order, those of the nine that are missing behind the rest.

    Their score decides nothing: each is the only piece that covers its character.
    """
    known = {piece for piece, _ in vocabulary.pieces}
    return vocabulary.pieces + [(piece, 0.0) for piece in NEW_PIECES if piece not in known]


def build_spiece(vocabulary: T5Vocabulary) -> bytes:
    """Return the same pieces as a SentencePiece model, for readers that want one.

    SentencePiece has one dummy ``▁`` a text, not one a line: ``charsmap.py`` gives it the others,
    but for a text that begins or ends with a newline or a tab, which has one ``▁`` more there. Of
    several ways to cut a word with the same score, it may take another one.
    """
    spm = _protobuf()
    proto = spm.ModelProto()
    pieces = with_new_pieces(vocabulary)
    for piece, score in pieces:
        proto.pieces.add(piece=piece, score=score, type=_kind_of(piece, spm))
    trainer = proto.trainer_spec
    trainer.model_type, trainer.vocab_size = spm.TrainerSpec.UNIGRAM, len(pieces)
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    trainer.pad_piece, trainer.eos_piece, trainer.unk_piece = SPECIALS
    normalizer, denormalizer = proto.normalizer_spec, proto.denormalizer_spec
    normalizer.name = "nmt_nfkc"
    normalizer.precompiled_charsmap = starts_lines(vocabulary.charsmap)
    normalizer.add_dummy_prefix, normalizer.escape_whitespaces = True, True
    normalizer.remove_extra_whitespaces = False
    denormalizer.precompiled_charsmap = ends_lines()
    denormalizer.add_dummy_prefix, denormalizer.escape_whitespaces = False, False
    denormalizer.remove_extra_whitespaces = False
    return bytes(proto.SerializeToString(deterministic=True))


def _kind_of(piece: str, spm: Any) -> int:
    kinds = spm.ModelProto.SentencePiece
    if piece == "<unk>":
        return int(kinds.UNKNOWN)
    if piece in SPECIALS or _is_sentinel(piece):
        return int(kinds.CONTROL)
    # The map does not see what is the user's: a newline must be a piece like any other.
    return int(kinds.USER_DEFINED if piece in NEW_PIECES[2:] else kinds.NORMAL)


def _protobuf() -> Any:
    # Imported late: a preparation that is found again does without it.
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2


def _normalizer(charsmap: bytes) -> dict[str, Any]:
    precompiled = base64.b64encode(charsmap).decode("ascii")
    return {
        "type": "Sequence",
        "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": precompiled},
            {"type": "Prepend", "prepend": SPACE},
            _replace(" ", SPACE),
        ],
    }


def _pre_tokenizer() -> dict[str, Any]:
    space = {"replacement": SPACE, "prepend_scheme": "never", "split": True}
    at_less_than = {"pattern": {"String": "<"}, "behavior": "Isolated", "invert": False}
    return {
        "type": "Sequence",
        "pretokenizers": [{"type": "Metaspace", **space}, {"type": "Split", **at_less_than}],
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _added_token(content: str, token_id: int, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _eos() -> dict[str, Any]:
    return {"SpecialToken": {"id": "</s>", "type_id": 0}}
