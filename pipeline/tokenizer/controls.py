r"""Control tokens: which a tokenizer has, and that no text gives one's id.

``encode_special_tokens`` leaves a token that stands in a text as characters; but the model of a
tokenizer may put the same token together again: in a Unigram vocabulary ``</s>`` and the bytes
``<0x0A>`` are pieces like any other. There the pre-tokenizer parts the first character of exactly
these from the rest; all other texts keep their ids.

    "</s>"  ->  "<" "/s>"        "</p>"  ->  "</p>"
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.errors import TokenizerError
from pipeline.hub.model_files import CONFIG
from pipeline.tokenizer.files import Files, parse_tokenizer, read_json
from pipeline.tokenizer.vocabulary import KINDS, SPACE, kind_of, parting_pattern

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def control_tokens(spec: dict[str, Any]) -> list[str]:
    """Return the tokens of a ``tokenizer.json`` that are no text."""
    return [
        str(token["content"]) for token in spec.get("added_tokens") or [] if token.get("special")
    ]


def guard(files: Files, template: str, where: str) -> Files:
    """Return files of a tokenizer in which no text gives the id of a control token.

    Args:
        files: A tokenizer's, ``tokenizer.json`` among them.
        template: The model's chat template: an added token that stands in it is a control token.
        where: The tokenizer's folder or name, for messages.

    Raises:
        TokenizerError: A text gives one all the same.
    """
    spec = read_json(files["tokenizer.json"], where)
    config = read_json(files.get(CONFIG, b"{}"), where)
    marked = [token for token in _added(spec, config) if _is_control(token, template)]
    # One that is matched in normalized text is found in characters that only become it.
    as_it_should = {"special": True, "normalized": False}
    changed = [token for token in marked if not as_it_should.items() <= token.items()]
    for token in changed:
        token |= as_it_should
    reached = _reached(spec, where)
    if reached:
        parting = {
            "type": "Split",
            "pattern": {"Regex": parting_pattern([*reached, *_unknown(spec)])},
            "behavior": "Isolated",
            "invert": False,
        }
        before: dict[str, Any] = spec.get("pre_tokenizer") or {}
        parts = before.get("pretokenizers", [before]) if before else []
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*parts, parting]}
        # The class that adds nothing of its own to what tokenizer.json says.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if left := _reached(spec, where):
            raise TokenizerError(
                "the tokenizer turns plain text into a control token",
                where=where,
                got=", ".join(left[:5]),
                do="give another model",
            )
    if not (changed or reached):
        return files
    return files | {"tokenizer.json": _text(spec), CONFIG: _text(config)}


def _added(spec: dict[str, Any], config: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Return the added tokens of both files, which transformers reads both."""
    return [*(spec.get("added_tokens") or []), *(config.get("added_tokens_decoder") or {}).values()]


def _is_control(token: dict[str, Any], template: str) -> bool:
    content = str(token["content"])
    return bool(token.get("special")) or (len(content.strip()) > 1 and content in template)


def _reached(spec: dict[str, Any], where: str) -> list[str]:
    """Return the control tokens, one of each kind, whose ids a text gives."""
    backend = parse_tokenizer(json.dumps(spec), where)
    backend.encode_special_tokens = True
    vocabulary = backend.get_vocab()
    # What the vocabulary does not know has the id of the unknown token, as it should.
    kinds = [token for token in control_tokens(spec) if not kind_of(token)]
    controls = [token for token in kinds if token not in _unknown(spec)]
    found = [token for token in controls if _gives(backend, vocabulary, token)]
    return found + [token for token in KINDS if _gives(backend, vocabulary, token)]


def _unknown(spec: dict[str, Any]) -> list[str]:
    """Return the unknown token, if there is one."""
    model = spec.get("model") or {}
    if model.get("type") == "Unigram" and model.get("unk_id") is not None:
        return [str(model["vocab"][model["unk_id"]][0])]
    return [str(model["unk_token"])] if model.get("unk_token") else []


def _gives(backend: "Tokenizer", vocabulary: dict[str, int], token: str) -> bool:
    ids = {vocabulary[name] for name in (token, SPACE + token) if name in vocabulary}
    return any(
        ids.intersection(backend.encode(text, add_special_tokens=False).ids)
        for text in (token, f"a{token}", f"a {token}a")
    )


def _text(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8")
