"""Cuts a text to so many tokens: its first ones, or its last."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class MeasuredText:
    """A text, and where each of its tokens begins and ends in it."""

    text: str
    spans: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, text: str, tokenizer: TextTokenizer) -> "MeasuredText":
        """Measure a text."""
        return cls(text, tokenizer.backend.encode(text, add_special_tokens=False).offsets)

    @property
    def size(self) -> int:
        """How many tokens it has."""
        return len(self.spans)

    def first(self, count: int) -> str:
        """Return its first tokens.

        >>> text = MeasuredText("one two", [(0, 3), (3, 7)])
        >>> text.first(1), text.last(1), text.first(2), text.last(0)
        ('one', ' two', 'one two', '')
        """
        if count >= self.size:
            return self.text
        return self.text[: self.spans[count - 1][1]] if count > 0 else ""

    def last(self, count: int) -> str:
        """Return its last tokens."""
        if count >= self.size:
            return self.text
        return self.text[self.spans[self.size - count][0] :] if count > 0 else ""


def last_tokens(texts: Sequence[MeasuredText], count: int) -> list[str]:
    """Return the last tokens of texts that follow one another; the first of them go first.

    >>> texts = [MeasuredText("ab", [(0, 1), (1, 2)]), MeasuredText("c", [(0, 1)])]
    >>> last_tokens(texts, 2), last_tokens(texts, 0)
    (['b', 'c'], ['', ''])
    """
    kept = list[str]()
    for text in reversed(texts):
        kept.append(text.last(count))
        count = max(count - text.size, 0)
    return kept[::-1]
