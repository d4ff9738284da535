"""Text to ids and back: the fast tokenizer, and what the two stages ask of it."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import TokenizerError
from pipeline.json_object import read_json_object
from pipeline.tokenizer import lossless
from pipeline.tokenizer.files import Files, parse_tokenizer
from pipeline.tokenizer.model_template import ModelTemplate
from pipeline.tokenizer.vocabulary import SPACE

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTokenizer:
    """A fast tokenizer and what the two stages ask of it.

    Control ids never come out of a text: ``</s>`` in a message is plain characters.

    Args:
        files: What ``save`` writes: file names and contents, ``tokenizer.json`` among them.
        eos: The token that ends a row.
        unk: The token for what the vocabulary does not know, if there is one.
        where: The model's name, for messages.
        decoder_start_id: What the model's decoder starts with, where its config says.
        forced_id: What its generation begins each answer with, where it does.
        template: The model's own chat template, where it makes the encoder's text.
        is_lossless: Whether it is the tokenizer of ``lossless.py``; None: look.

    Raises:
        TokenizerError: ``tokenizer.json`` cannot be read, or has no such ``eos``.
    """

    def __init__(
        self,
        files: Files,
        eos: str | None,
        unk: str | None,
        where: str,
        decoder_start_id: int | None = None,
        template: ModelTemplate | None = None,
        is_lossless: bool | None = None,
        forced_id: int | None = None,
    ) -> None:
        self.files, self._where = files, where
        self.template = template
        """The model's own chat template; None: ``template.py`` makes the encoder's text."""
        self._is_lossless = is_lossless
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
        wrapped = self.backend.encode("x")
        own = wrapped.sequence_ids.index(0) if 0 in wrapped.sequence_ids else 0
        self.prefix_ids = tuple(wrapped.ids[:own])
        """Ids that the tokenizer puts before a text; none for T5."""
        is_start = decoder_start_id is None or decoder_start_id in self.prefix_ids
        self.label_prefix_ids = () if is_start else self.prefix_ids
        """Ids before an answer: what generation puts there, else those before a text, as BART's
        ``<s>``, but not Gemma's ``<bos>``, which the decoder starts with anyway."""
        if forced_id is not None:
            self.label_prefix_ids = (forced_id,)
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        """One more than the highest id; a vocabulary may have holes."""
        normalizer = self.backend.normalizer
        self._has_dummy = normalizer is not None and str(normalizer.normalize_str("x")).endswith(
            SPACE + "x"
        )

    @functools.cached_property
    def backend(self) -> "Tokenizer":
        """The fast tokenizer."""
        backend = self._new_backend()
        # Otherwise "</s>" in a text would be the id of </s>.
        backend.encode_special_tokens = True
        return backend

    @functools.cached_property
    def _rendered_backend(self) -> "Tokenizer":
        """The same, to which control tokens are what they say."""
        return self._new_backend()

    def _new_backend(self) -> "Tokenizer":
        return parse_tokenizer(self.files["tokenizer.json"].decode("utf-8"), self._where)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the backends: pickled, they forget settings; not all need them made again."""
        return {n: value for n, value in vars(self).items() if not n.endswith("backend")}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that decides the ids."""
        ids: list[Any] = [self.prefix_ids, self.eos_id, self.unk_id]
        ids += [self.label_prefix_ids] if self.prefix_ids or self.label_prefix_ids else []
        if self.template is not None or not self.is_lossless:
            ids += ["whole texts", self.template.text if self.template else None]
        ids += [dict(self.template.special)] if self.template else []
        text = self.backend.to_str() + json.dumps(ids, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without prefix and ``</s>``."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of what a chat template rendered, control tokens among them."""
        ids: list[int] = self._rendered_backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; control ids are left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def decode_source(self, ids: Sequence[int]) -> str:
        """Return an encoder row as text, with the control tokens of a model's own template."""
        if self.template is None:
            return self.decode(ids)
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def normalize(self, text: str) -> str:
        """Return a text as the normaliser leaves it, with spaces as spaces."""
        if self.backend.normalizer is None:
            return text
        normal = str(self.backend.normalizer.normalize_str(text)).replace(SPACE, " ")
        return normal[1:] if self._has_dummy and normal.startswith(" ") else normal

    def save(self, folder: Path, *, model_max_length: int) -> None:
        """Write the files that ``AutoTokenizer.from_pretrained(folder)`` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.saved_files(model_max_length=model_max_length).items():
            (folder / name).write_bytes(content)

    def saved_files(self, *, model_max_length: int) -> Files:
        """Return these files by name."""
        files = self.files | self._spiece()
        if "tokenizer_config.json" in files:
            config = read_json_object(files["tokenizer_config.json"])
            config |= {"model_max_length": model_max_length}
            text = json.dumps(config, indent=2, ensure_ascii=False)
            files["tokenizer_config.json"] = text.encode("utf-8")
        return files

    @property
    def is_lossless(self) -> bool:
        """Whether it is the one of ``lossless.py``."""
        if self._is_lossless is None:
            spec = read_json_object(self.files["tokenizer.json"])
            self._is_lossless = lossless.is_lossless(spec)
        return self._is_lossless

    def _spiece(self) -> Files:
        """Return the lossless tokenizer's ``spiece.model``, made only when it is saved.

        One that transformers saved again has none either: it does not know the file.
        """
        if "spiece.model" in self.files:
            return {}
        if not self.is_lossless:
            return {}
        spec = read_json_object(self.files["tokenizer.json"])
        return {"spiece.model": lossless.build_spiece(lossless.vocabulary_of_lossless(spec))}
