"""What a vocabulary does not know: which characters a text loses, and whether anything is left."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.prepare.encode.text_encoder import Lines
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids

# Words with a character that some T5 may not know; NUL is the one among the ASCII ones.
_DOUBTFUL_WORD = re.compile(r"[^ \n\t]*[^\x01-\x7f][^ \n\t]*")


class Unknowns:
    """Finds a tokenizer's unknown tokens.

    Args:
        tokenizer: Of any kind.
        has_words: Whether no token of it goes beyond a space, a newline or a tab.
    """

    def __init__(self, tokenizer: TextTokenizer, *, has_words: bool) -> None:
        """Keep both."""
        self._tokenizer, self._has_words = tokenizer, has_words
        self._id = tokenizer.unk_id

    def lines(self, lines: Lines) -> set[int]:
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
        known = self._tokenizer.decode([i for i in ids if i != self._id])
        return any(c.isalpha() or c.isdigit() for c in known)

    def lost(self, text: str) -> Counter[str]:
        """Return the characters of a text that are not in its ids, normalised as tokens are."""
        if self._has_words:  # far less text, and the same tokens
            text = " ".join(_DOUBTFUL_WORD.findall(text))
        found: Counter[str] = Counter()
        backend = self._tokenizer.backend
        unknown = backend.id_to_token(self._id) if self._id is not None else None
        encoding = backend.encode(text, add_special_tokens=False)
        for token_id, token, (start, end) in zip(
            encoding.ids, encoding.tokens, encoding.offsets, strict=True
        ):
            if token_id == self._id:
                found.update(text[start:end] if token == unknown else token)
        return found
