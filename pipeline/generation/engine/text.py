"""Ids to text as they come, held back where a stop string may have started."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from pipeline.tokenizer import TextTokenizer


class TextStream:
    """The text of an answer that is being written.

    Args:
        tokenizer: Decodes the ids.
        stop: The text ends before the first of these.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._decoding = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._text = ""
        self._given = 0
        self.is_stopped = False
        """Whether a stop string was met."""

    def add(self, token: int) -> str:
        """Take in an id; return the text that is certain now and was not returned before."""
        if self.is_stopped:
            return ""
        self._ids.append(token)
        piece: str | None = self._decoding.step(self._tokenizer.backend, token)
        if piece:
            self._take(self._text + piece)
        return self._give(len(self._text) - (0 if self.is_stopped else self._held_back()))

    def close(self) -> str:
        """Return the rest of the text, with what was held back."""
        if not self.is_stopped:
            self._take(self._tokenizer.decode(self._ids))
        return self._give(len(self._text))

    @property
    def text(self) -> str:
        """All that was returned so far."""
        return self._text[: self._given]

    def _take(self, text: str) -> None:
        found = [at for stop in self._stop if (at := text.find(stop, self._given)) >= 0]
        self._text = text[: min(found)] if found else text
        self.is_stopped = bool(found)

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _held_back(self) -> int:
        """Return how many of the last characters may be the beginning of a stop string."""
        return held_back(self._text[self._given :], self._stop)


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of a text that begins a stop string.

    >>> held_back("one, two #", ["## end", "#!"]), held_back("one", ["two"])
    (1, 0)
    """
    longest = min(len(text), max(map(len, stop), default=1) - 1)
    for size in range(longest, 0, -1):
        if any(word.startswith(text[-size:]) for word in stop if len(word) > size):
            return size
    return 0
