"""A model's folder or name to the tokenizer that its rows are made with, and their template."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import TokenizerError
from pipeline.hub.download import find_model_file
from pipeline.hub.model_files import CONFIG, SPECIAL, TEMPLATE, VOCABULARY_FILES
from pipeline.template import chat_template, is_chat_template
from pipeline.tokenizer import lossless
from pipeline.tokenizer.controls import control_tokens, guard
from pipeline.tokenizer.files import (
    Files,
    added_tokens,
    converted_files,
    named_special_tokens,
    own_files,
    parse_tokenizer,
    read_json,
    special_tokens,
    unreadable,
)
from pipeline.tokenizer.model_template import fit_template, read_template, turn_end
from pipeline.tokenizer.preamble import is_fitted
from pipeline.tokenizer.text import TextTokenizer
from pipeline.tokenizer.vocabulary import Vocabulary, vocabulary_of_json, vocabulary_of_spiece

TemplateChoice = Literal["auto", "duet", "model"]
"""The text of a row: by the model's own chat template where it has one, by ours, by its own."""

_T5 = (None, "t5", "longt5", "switch_transformers")
"""Types of models with T5's vocabulary; None: a tokenizer alone."""
_MT5 = ("mt5", "umt5")
_LINES = "a\nb  c"


def load_tokenizer(
    name_or_path: str, cache_dir: str | None = None, template: TemplateChoice = "auto"
) -> TextTokenizer:
    """Load the tokenizer that a model's rows are made with.

    Args:
        name_or_path: A folder with a tokenizer's files, or a name on the hub.
        cache_dir: Where files from the hub are kept.
        template: What makes the encoder's text.

    Raises:
        ModelError: The model cannot be found.
        TokenizerError: It has no tokenizer, or a broken one; or its chat template is wanted and
            there is none, or it cannot be used.
    """
    said = template_of(name_or_path, cache_dir)
    own = None if said is None or is_chat_template(said) else said
    if template == "model" and own is None:
        raise TokenizerError(
            "the model has no chat template of its own",
            where=name_or_path,
            got=f"none in {CONFIG}, and no {TEMPLATE}",
            do="leave --chat-template out, or give --chat-template duet",
        )
    used = None if template == "duet" else own
    files = _lossless_files(name_or_path, cache_dir, used or "")
    start_id: int | None = None
    is_lossless: bool | None = files is not None
    if files is None:
        files = _other_files(name_or_path, cache_dir)
        start_id = _said_id("decoder_start_token_id", name_or_path, cache_dir)
    if (own and not is_fitted(own)) or (said is None and not is_lossless):  # else it has been
        guarded = guard(files, own or "", name_or_path)
        files, is_lossless = guarded, is_lossless if guarded is files else None  # to be looked at
    if used is not None and not is_fitted(used):
        ends = _end_ids(name_or_path, cache_dir)
        files, used = _with_model_template(files, used, name_or_path, ends)
    elif used is None and (said is None or own is not None):
        files = _with_our_template(files)
    special = named_special_tokens(files, name_or_path)
    fitted = None if used is None else read_template(used, special, name_or_path)
    eos, unk = special.get("eos_token"), special.get("unk_token")
    forced_id = _said_id("forced_bos_token_id", name_or_path, cache_dir)
    return TextTokenizer(
        files,
        eos,
        unk,
        name_or_path,
        start_id,
        fitted,
        is_lossless=is_lossless,
        forced_id=forced_id,
    )


def template_of(name_or_path: str, cache_dir: str | None = None) -> str | None:
    """Return the chat template that transformers finds in a model's files; None: there is none.

    Raises:
        ModelError: The model cannot be found.
        TokenizerError: A file cannot be read.
    """
    path = find_model_file(name_or_path, TEMPLATE, cache_dir)
    if path is not None:  # it counts before the other, empty or not
        text: Any = _text(path)
    else:
        path = find_model_file(name_or_path, CONFIG, cache_dir)
        text = read_json(path, path).get("chat_template") if path is not None else None
    if isinstance(text, list):  # several by name
        named = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}
        text = named.get("default")
    return text if isinstance(text, str) and text.strip() else None


def tokenizer_of(tokenizer: Any) -> TextTokenizer:
    """Return the TextTokenizer of a transformers tokenizer (stock T5's becomes lossless)."""
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return load_tokenizer(folder)


def _lossless_files(name_or_path: str, cache_dir: str | None, template: str) -> Files | None:
    """Return the files of the lossless tokenizer; None where it cannot be made for a model.

    Nor is it where a template writes tokens that the model was given later: it would lose them.
    """
    spec_path = find_model_file(name_or_path, "tokenizer.json", cache_dir)
    spec = read_json(spec_path, spec_path) if spec_path else None
    if spec is not None and lossless.is_lossless(spec):
        return own_files(name_or_path, cache_dir)
    kind = _config(name_or_path, cache_dir).get("model_type")
    vocabulary = None
    if kind in _T5:
        vocabulary = _t5_vocabulary(spec, find_model_file(name_or_path, "spiece.model", cache_dir))
    if vocabulary is None and kind in (*_T5, *_MT5):
        vocabulary = _vocabulary_with_room(name_or_path, cache_dir)
    if vocabulary is None or (
        template and _writes_more(template, vocabulary, name_or_path, cache_dir)
    ):
        return None
    return _files_of_vocabulary(vocabulary)


def _t5_vocabulary(spec: dict[str, Any] | None, spiece: Path | None) -> Vocabulary | None:
    vocabulary = vocabulary_of_json(spec) if spec is not None else None
    if vocabulary is None and spiece is not None:
        vocabulary = vocabulary_of_spiece(spiece)
    return vocabulary if vocabulary is not None and vocabulary.is_t5 else None


def _writes_more(
    template: str, vocabulary: Vocabulary, name_or_path: str, cache_dir: str | None
) -> bool:
    """Return whether a template writes a token that a vocabulary has not."""
    more = added_tokens(own_files(name_or_path, cache_dir), name_or_path) - vocabulary.ids.keys()
    return any(len(token.strip()) > 1 and token in template for token in more)


def _vocabulary_with_room(name_or_path: str, cache_dir: str | None) -> Vocabulary | None:
    """Return a vocabulary that loses lines, of a model that has rows for the pieces it lacks."""
    rows = _config(name_or_path, cache_dir).get("vocab_size")
    if not isinstance(rows, int):
        return None
    spec = _other_files(name_or_path, cache_dir)["tokenizer.json"]
    vocabulary = vocabulary_of_json(read_json(spec, name_or_path))
    if vocabulary is None or rows < len(vocabulary.with_new_pieces().pieces):
        return None
    backend = parse_tokenizer(spec.decode("utf-8"), name_or_path)
    ids = backend.encode(_LINES, add_special_tokens=False).ids
    # Tokens that the model was given later may have the rows.
    has_room = len(backend.get_vocab()) <= len(vocabulary.pieces)
    return vocabulary if has_room and backend.decode(ids) != _LINES else None


def _files_of_vocabulary(vocabulary: Vocabulary) -> Files:
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
    return {
        "tokenizer.json": lossless.build_json(vocabulary).encode("utf-8"),
        CONFIG: json.dumps(config, ensure_ascii=False).encode("utf-8"),
    }


def _other_files(name_or_path: str, cache_dir: str | None) -> Files:
    files = own_files(name_or_path, cache_dir)
    if not any(name in files for name in VOCABULARY_FILES):
        # transformers would make a tokenizer of nothing.
        raise TokenizerError(
            "the model has no tokenizer",
            where=name_or_path,
            got="none of " + ", ".join(VOCABULARY_FILES),
            do="copy the tokenizer's files beside the model",
        )
    if "tokenizer.json" not in files or not _is_complete(files, name_or_path):
        files = converted_files(name_or_path, cache_dir)
    return files


def _is_complete(files: Files, where: str) -> bool:
    """Return whether nothing is left to a tokenizer's class: BART's names its tokens, for one.

    Tokens that ``tokenizer.json`` lacks get their ids when the class is made.
    """
    if "eos_token" not in named_special_tokens(files, where):
        return False
    vocabulary = parse_tokenizer(files["tokenizer.json"].decode("utf-8"), where).get_vocab()
    return vocabulary.keys() >= added_tokens(files, where)


def _with_our_template(files: Files) -> Files:
    """Return files whose template is this program's, which writes no control token."""
    config = read_json(files.get(CONFIG, b"{}"), CONFIG)
    changes = {"chat_template": chat_template(), "split_special_tokens": True}
    return _with_config(files, config | changes)


def _with_model_template(
    files: Files, own: str, where: str, end_ids: set[int]
) -> tuple[Files, str]:
    """Return files whose template is the model's, fitted to any conversation, and the template.

    Args:
        files: A tokenizer's.
        own: The template.
        where: The tokenizer's folder or name.
        end_ids: Those at which the model's generation stops.
    """
    special = special_tokens(files, where)
    spec = read_json(files["tokenizer.json"], where)
    controls = control_tokens(spec)
    fitted = fit_template(own, special, controls, where)
    end = turn_end(fitted, controls)
    ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
    if end is not None and ids[end] in end_ids and "eos_token" not in own:
        # What the model ends its own turns with, where generation stops at it.
        special["eos_token"] = end
    changes = special | {"chat_template": fitted.text, "split_special_tokens": False}
    if SPECIAL in files:  # it counts before the config
        older = read_json(files[SPECIAL], where) | special
        files = files | {SPECIAL: json.dumps(older, ensure_ascii=False).encode("utf-8")}
    return _with_config(files, read_json(files.get(CONFIG, b"{}"), CONFIG) | changes), fitted.text


def _with_config(files: Files, config: dict[str, Any]) -> Files:
    """Return files with another config, in which alone the template stands."""
    text = json.dumps(config, ensure_ascii=False).encode("utf-8")
    return {name: content for name, content in files.items() if name != TEMPLATE} | {CONFIG: text}


def _end_ids(name_or_path: str, cache_dir: str | None) -> set[int]:
    """Return the ids at which a model's generation stops, as far as its files say."""
    ids = _said("eos_token_id", name_or_path, cache_dir)
    return {found for found in (ids if isinstance(ids, list) else [ids]) if isinstance(found, int)}


def _said_id(key: str, name_or_path: str, cache_dir: str | None) -> int | None:
    value = _said(key, name_or_path, cache_dir)
    return value if isinstance(value, int) else None


def _said(key: str, name_or_path: str, cache_dir: str | None) -> Any:
    """Return what a model's files say of its answers, in the order in which they count."""
    path = find_model_file(name_or_path, "generation_config.json", cache_dir)
    config = _config(name_or_path, cache_dir)
    nested = config.get("decoder")
    saids = [read_json(path, path) if path is not None else {}, config]
    saids += [nested] if isinstance(nested, dict) else []
    return next((found for said in saids if (found := said.get(key)) is not None), None)


def _config(name_or_path: str, cache_dir: str | None) -> dict[str, Any]:
    path = find_model_file(name_or_path, "config.json", cache_dir)
    return read_json(path, path) if path is not None else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
