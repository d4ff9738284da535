"""What a vocabulary does not know: which characters a text loses, and whether anything is left."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids

if TYPE_CHECKING:
    from pipeline.prepare.encode.by_line.text_encoder import Lines

# Words with a character that some T5 may not know; NUL is the one among the ASCII ones. Tried only
# where a word begins: at each of its characters, it would take the square of a long word's length.
_DOUBTFUL_WORD = re.compile(r"(?<![^ \n\t])[\x01-\x08\x0b-\x1f\x21-\x7f]*[^\x01-\x7f][^ \n\t]*")
_MOST_KEPT = 50_000  # a few megabytes


class Unknowns:
    """Finds a tokenizer's unknown tokens.

    Args:
        tokenizer: Of any kind.
        has_words: Whether no token of it goes beyond a space, a newline or a tab.
    """

    def __init__(self, tokenizer: TextTokenizer, *, has_words: bool) -> None:
        self._tokenizer, self._has_words = tokenizer, has_words
        self._id = tokenizer.unk_id
        self._has_letter: dict[int, bool] = {}
        self._lost: dict[str, str] = {}  # what words lose; most of them nothing

    def lines(self, lines: "Lines") -> set[int]:
        """Return the indices of the lines that hold an unknown token."""
        if self._id is None:
            return set()
        places = np.flatnonzero(lines.ids == self._id)
        return set((np.searchsorted(lines.starts, places, side="right") - 1).tolist())

    def among(self, ids: Ids) -> bool:
        """Return whether an unknown token is among some ids."""
        return self._id is not None and bool((ids == self._id).any())

    def leave_something(self, ids: Sequence[int]) -> bool:
        """Return whether the known ones among some ids hold a letter or a digit."""
        return any(i != self._id and self._says_something(i) for i in ids)

    def lost(self, texts: Sequence[str]) -> list[Counter[str]]:
        """Return the characters of texts that are not in their ids, normalised as tokens are."""
        if not self._has_words:  # whole answers are worth no keeping, nor tokens of all at once
            encode = self._tokenizer.backend.encode
            return [Counter(self._lost_in(t, encode(t, add_special_tokens=False))) for t in texts]
        if len(self._lost) > _MOST_KEPT:
            self._lost.clear()
        words = [_DOUBTFUL_WORD.findall(text) for text in texts]
        new = list(dict.fromkeys(w for some in words for w in some if w not in self._lost))
        encodings = self._tokenizer.backend.encode_batch(new, add_special_tokens=False)
        self._lost.update(zip(new, map(self._lost_in, new, encodings), strict=True))
        # Most words lose nothing.
        return [Counter("".join(map(self._lost.__getitem__, some))) for some in words]

    def _says_something(self, token_id: int) -> bool:
        if token_id not in self._has_letter:
            token = self._tokenizer.backend.id_to_token(token_id) or ""
            self._has_letter[token_id] = any(c.isalpha() or c.isdigit() for c in token)
        return self._has_letter[token_id]

    def _lost_in(self, text: str, encoding: Encoding) -> str:
        if self._id not in encoding.ids:
            return ""
        unknown = self._tokenizer.backend.id_to_token(self._id) if self._id is not None else None
        tokens = zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        return "".join(
            text[start:end] if token == unknown else token
            for token_id, token, (start, end) in tokens
            if token_id == self._id
        )
