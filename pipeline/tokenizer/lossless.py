r"""Builds the lossless tokenizer from a vocabulary of T5's kind.

T5's stock tokenizer drops newlines, tabs and runs of spaces and has no ``< \ ^ ` { } ~``: code
cannot survive it. Here the nine missing pieces take the ids after the sentinels (32,100 to
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
- mT5's kind (``vocabulary.py``) has pieces with ``<``: there only a ``<`` that begins a control
  token stands alone, and characters without a piece are pieces of their bytes;
- decoder: join, drop the dummy of each line, ``▁`` back to a space.
"""

import base64
import json
from typing import Any

from pipeline.tokenizer.charsmap import ends_lines, starts_lines
from pipeline.tokenizer.vocabulary import (
    BYTES,
    KINDS,
    NEW_PIECES,
    SPACE,
    Vocabulary,
    charsmap_of,
    is_sentinel,
    parting_pattern,
    protobuf,
)


def is_lossless(spec: dict[str, Any]) -> bool:
    """Return whether a ``tokenizer.json`` is this tokenizer already."""
    charsmap = charsmap_of(spec.get("normalizer"))
    if charsmap is None or (spec.get("model") or {}).get("type") != "Unigram":
        return False
    if spec["normalizer"] != _normalizer(charsmap):
        return False
    vocabulary = vocabulary_of_lossless(spec)
    has_pieces = vocabulary.ids.keys() >= set(NEW_PIECES)
    return has_pieces and spec["pre_tokenizer"] == _pre_tokenizer(vocabulary)


def vocabulary_of_lossless(spec: dict[str, Any]) -> Vocabulary:
    """Return the pieces, the nine new ones included, of a ``tokenizer.json`` that is lossless."""
    pieces = [(piece, float(score)) for piece, score in spec["model"]["vocab"]]
    return Vocabulary(pieces, charsmap_of(spec["normalizer"]) or b"")


def build_json(vocabulary: Vocabulary) -> str:
    """Return the lossless tokenizer as the text of a ``tokenizer.json``."""
    whole = vocabulary.with_new_pieces()
    added = [_added_token(whole.pieces[i][0], i, special=True) for i in vocabulary.controls]
    added += [_added_token(piece, whole.ids[piece], special=False) for piece in ("\n", "\t")]
    eos_id = whole.ids["</s>"]
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": _normalizer(vocabulary.charsmap),
        "pre_tokenizer": _pre_tokenizer(vocabulary),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_sequence("A"), _eos()],
            "pair": [_sequence("A"), _eos(), _sequence("B"), _eos()],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [eos_id], "tokens": ["</s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                *([{"type": "ByteFallback"}] if vocabulary.has_bytes else []),
                {"type": "Fuse"},
                _replace("\n" + SPACE, "\n"),
                _replace("\t" + SPACE, "\t"),
                _replace(SPACE, " "),
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": whole.ids["<unk>"],
            "vocab": whole.pieces,
            "byte_fallback": vocabulary.has_bytes,
        },
    }
    return json.dumps(spec, ensure_ascii=False)


def build_spiece(vocabulary: Vocabulary) -> bytes:
    """Return the same pieces as a SentencePiece model, for readers that want one.

    SentencePiece has one dummy ``▁`` a text, not one a line: ``charsmap.py`` gives it the others,
    but for a text that begins or ends with a newline or a tab, which has one ``▁`` more there. Of
    several ways to cut a word with the same score, it may take another one.
    """
    spm = protobuf()
    proto = spm.ModelProto()
    whole = vocabulary.with_new_pieces()
    special, normal = _special_kinds(vocabulary, spm), spm.ModelProto.SentencePiece.NORMAL
    for piece, score in whole.pieces:
        proto.pieces.add(piece=piece, score=score, type=special.get(piece, normal))
    trainer = proto.trainer_spec
    trainer.model_type, trainer.vocab_size = spm.TrainerSpec.UNIGRAM, len(whole.pieces)
    trainer.pad_piece, trainer.eos_piece, trainer.unk_piece = "<pad>", "</s>", "<unk>"
    trainer.pad_id, trainer.eos_id, trainer.unk_id = (
        whole.ids[piece] for piece in ("<pad>", "</s>", "<unk>")
    )
    trainer.bos_id = -1
    if whole.has_bytes:
        trainer.byte_fallback = True
    normalizer, denormalizer = proto.normalizer_spec, proto.denormalizer_spec
    normalizer.name = "nmt_nfkc"
    normalizer.precompiled_charsmap = starts_lines(vocabulary.charsmap)
    normalizer.add_dummy_prefix, normalizer.escape_whitespaces = True, True
    normalizer.remove_extra_whitespaces = False
    denormalizer.precompiled_charsmap = ends_lines()
    denormalizer.add_dummy_prefix, denormalizer.escape_whitespaces = False, False
    denormalizer.remove_extra_whitespaces = False
    return bytes(proto.SerializeToString(deterministic=True))


def _special_kinds(vocabulary: Vocabulary, spm: Any) -> dict[str, int]:
    """Return the kinds of the pieces that are no ordinary ones."""
    kinds = spm.ModelProto.SentencePiece
    # The map does not see what is the user's: a newline must be a piece like any other.
    found = dict.fromkeys(NEW_PIECES[2:], kinds.USER_DEFINED)
    found |= dict.fromkeys(BYTES if vocabulary.has_bytes else (), kinds.BYTE)
    controls = [vocabulary.pieces[i][0] for i in vocabulary.controls]
    sentinels = [piece for piece, _ in vocabulary.pieces if is_sentinel(piece)]
    return found | dict.fromkeys([*controls, *sentinels], kinds.CONTROL) | {"<unk>": kinds.UNKNOWN}


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


def _pre_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what parts words, and control tokens that stand in a text.

    T5 has no piece with ``<`` in it. mT5's kind has some, which stay whole where they are no
    control token.
    """
    space = {"replacement": SPACE, "prepend_scheme": "never", "split": True}
    pattern = {"String": "<"}
    if vocabulary.has_bytes:
        names = [vocabulary.pieces[i][0] for i in vocabulary.controls]
        several = [name for name in names if not name.startswith("<extra_id_")]
        pattern = {"Regex": parting_pattern([*several, *KINDS])}
    parting = {"pattern": pattern, "behavior": "Isolated", "invert": False}
    return {
        "type": "Sequence",
        "pretokenizers": [{"type": "Metaspace", **space}, {"type": "Split", **parting}],
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
