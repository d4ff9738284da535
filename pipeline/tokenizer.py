"""Text to ids and back, for both stages, without torch or transformers.

A T5's vocabulary becomes the lossless tokenizer (``lossless.py``); a folder whose tokenizer is
that one already is used as it is; a tokenizer that is no T5's goes through its own fast
tokenizer, unchanged. What is saved beside the rows is what ``AutoTokenizer`` loads.
"""

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline import lossless
from pipeline.errors import TokenizerError
from pipeline.hub import find_model_file
from pipeline.json_object import read_json_object
from pipeline.template import chat_template

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


class TextTokenizer:
    """A fast tokenizer and what the two stages ask of it.

    Control ids never come out of a text: ``</s>`` in a message is plain characters.

    Args:
        files: What ``save`` writes: file names and contents, ``tokenizer.json`` among them.
        eos: The token that ends a row.
        unk: The token for what the vocabulary does not know, if there is one.
        where: The model's name, for messages.
        decoder_start_id: What the model's decoder starts with, where its config says.

    Raises:
        TokenizerError: ``tokenizer.json`` cannot be read, or has no such ``eos``.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        eos: str | None,
        unk: str | None,
        where: str,
        decoder_start_id: int | None = None,
    ) -> None:
        self.files, self._where = files, where
        eos_id = self.backend.token_to_id(eos) if eos is not None else None
        if eos_id is None:
            raise TokenizerError(
                "the tokenizer has no end-of-sequence token",
                where=where,
                got=f"eos_token {eos}",
                do="give an encoder-decoder model",
            )
        self.eos_id: int = eos_id
        self.unk_id: int | None = self.backend.token_to_id(unk) if unk is not None else None
        wrapping = self.backend.encode("", add_special_tokens=True).ids
        self.prefix_ids = tuple(i for i in wrapping if i != eos_id)
        """Ids that the tokenizer puts before a text; none for T5."""
        is_start = decoder_start_id is None or decoder_start_id in self.prefix_ids
        self.label_prefix_ids = () if is_start else self.prefix_ids
        """Those of them before an answer: BART's ``<s>``, whose decoder starts with ``</s>``, but
        not Gemma's ``<bos>``, which the decoder starts with anyway."""
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        """One more than the highest id; a vocabulary may have holes."""
        normalizer = self.backend.normalizer
        self._has_dummy = normalizer is not None and str(normalizer.normalize_str("x")).endswith(
            lossless.SPACE + "x"
        )

    @functools.cached_property
    def backend(self) -> Tokenizer:
        """The fast tokenizer."""
        try:
            backend = Tokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            raise TokenizerError(
                "the tokenizer cannot be read",
                where=self._where,
                got=error,
                do="copy the model's folder again",
            ) from error
        backend.no_truncation()
        backend.no_padding()
        # Otherwise "</s>" in a text would be the id of </s>.
        backend.encode_special_tokens = True
        return backend

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the backend: pickled, it forgets its settings; not all need it made again."""
        return {name: value for name, value in vars(self).items() if name != "backend"}

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that decides the ids."""
        ids = [self.prefix_ids, self.eos_id, self.unk_id]
        ids += [self.label_prefix_ids] if self.prefix_ids else []
        text = self.backend.to_str() + json.dumps(ids)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without prefix and ``</s>``."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; control ids are left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def normalize(self, text: str) -> str:
        """Return a text as the normaliser leaves it, with spaces as spaces."""
        if self.backend.normalizer is None:
            return text
        normal = str(self.backend.normalizer.normalize_str(text)).replace(lossless.SPACE, " ")
        return normal[1:] if self._has_dummy and normal.startswith(" ") else normal

    def save(self, folder: Path, *, model_max_length: int) -> None:
        """Write the files that ``AutoTokenizer.from_pretrained(folder)`` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.saved_files(model_max_length=model_max_length).items():
            (folder / name).write_bytes(content)

    def saved_files(self, *, model_max_length: int) -> dict[str, bytes]:
        """Return these files by name."""
        files = self.files | self._spiece()
        if "tokenizer_config.json" in files:
            config = read_json_object(files["tokenizer_config.json"])
            config |= {"model_max_length": model_max_length}
            text = json.dumps(config, indent=2, ensure_ascii=False)
            files["tokenizer_config.json"] = text.encode("utf-8")
        return files

    def _spiece(self) -> dict[str, bytes]:
        """Return the lossless tokenizer's ``spiece.model``, made only when it is saved.

        One that transformers saved again has none either: it does not know the file.
        """
        if "spiece.model" in self.files:
            return {}
        spec = read_json_object(self.files["tokenizer.json"])
        if not lossless.is_lossless(spec):
            return {}
        return {"spiece.model": lossless.build_spiece(lossless.vocabulary_of_lossless(spec))}


def load_tokenizer(name_or_path: str, cache_dir: str | None = None) -> TextTokenizer:
    """Load the tokenizer that a model's rows are made with.

    Args:
        name_or_path: A folder with a tokenizer's files, or a name on the hub.
        cache_dir: Where files from the hub are kept.

    Raises:
        ModelError: The model cannot be found.
        TokenizerError: It has no tokenizer, or a broken one.
    """
    spec_path = find_model_file(name_or_path, "tokenizer.json", cache_dir)
    spec = _read_json(spec_path, spec_path) if spec_path else None
    if spec is not None and lossless.is_lossless(spec):
        return _own_fast_tokenizer(_own_files(name_or_path, cache_dir), name_or_path)
    if _model_type(name_or_path, cache_dir) in (None, "t5"):
        vocabulary = lossless.vocabulary_of_json(spec) if spec is not None else None
        spiece = find_model_file(name_or_path, "spiece.model", cache_dir)
        if vocabulary is None and spiece is not None:
            vocabulary = lossless.vocabulary_of_spiece(spiece)
        if vocabulary is not None:
            return _lossless_tokenizer(vocabulary)
    files = _own_files(name_or_path, cache_dir)
    if not any(name in files for name in VOCABULARY_FILES):
        # transformers would make a tokenizer of nothing.
        raise TokenizerError(
            "the model has no tokenizer",
            where=name_or_path,
            got="none of " + ", ".join(VOCABULARY_FILES),
            do="copy the tokenizer's files beside the model",
        )
    if "tokenizer.json" not in files:
        files = _converted_files(name_or_path, cache_dir)
    return _own_fast_tokenizer(files, name_or_path, _decoder_start_id(name_or_path, cache_dir))


def source_files(name_or_path: str, cache_dir: str | None = None) -> list[Path]:
    """Return the files that decide which tokenizer ``load_tokenizer`` gives.

    Raises:
        ModelError: The model cannot be found.
    """
    found = (
        find_model_file(name_or_path, name, cache_dir) for name in (*TOKENIZER_FILES, "config.json")
    )
    return [path for path in found if path is not None]


def tokenizer_of(tokenizer: Any) -> TextTokenizer:
    """Return the TextTokenizer of a transformers tokenizer (stock T5's becomes lossless)."""
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return load_tokenizer(folder)


def _lossless_tokenizer(vocabulary: lossless.T5Vocabulary) -> TextTokenizer:
    text = lossless.build_json(vocabulary)
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
    files = {
        "tokenizer.json": text.encode("utf-8"),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False).encode("utf-8"),
    }
    return TextTokenizer(files, "</s>", "<unk>", "T5's vocabulary")


def _own_files(name_or_path: str, cache_dir: str | None) -> dict[str, bytes]:
    paths = {name: find_model_file(name_or_path, name, cache_dir) for name in TOKENIZER_FILES}
    return {name: path.read_bytes() for name, path in paths.items() if path is not None}


def _own_fast_tokenizer(
    files: dict[str, bytes], where: str, decoder_start_id: int | None = None
) -> TextTokenizer:
    special: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            special |= _read_json(files[name], f"{where}/{name}")
    eos, unk = (_content(special.get(name)) for name in ("eos_token", "unk_token"))
    return TextTokenizer(files, eos, unk, where, decoder_start_id)


def _converted_files(name_or_path: str, cache_dir: str | None) -> dict[str, bytes]:
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


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _model_type(name_or_path: str, cache_dir: str | None) -> str | None:
    path = find_model_file(name_or_path, "config.json", cache_dir)
    value = (_read_json(path, path) if path else {}).get("model_type")
    return value if isinstance(value, str) else None


def _decoder_start_id(name_or_path: str, cache_dir: str | None) -> int | None:
    path = find_model_file(name_or_path, "config.json", cache_dir)
    value = (_read_json(path, path) if path else {}).get("decoder_start_token_id")
    return value if isinstance(value, int) else None


def _read_json(source: Path | bytes, where: object) -> dict[str, Any]:
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
