r"""Lines to ids: each distinct word is tokenized once, and its ids are gathered wherever it stands.

No piece of the lossless tokenizer crosses a space, a newline or a tab, and real text repeats its
words: 17 million in an export hold 0.6 million distinct ones. So texts are cut at these three
characters, the cuts are numbered by Arrow's dictionary, the words not met before are tokenized,
and the ids of all are gathered:

    "a  b\na"  ->  " a" " " " b" "\na"  ->  0 1 2 3  ->  ▁a  ▁  ▁b  \n ▁a

Where a word's ids depend on what stands around it, its line goes the tokenizer's own way:
a combining mark after a space forms one character with it, and a word that the normaliser leaves
nothing of gives no dummy when it is alone in its line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.prepare.encode.by_line.unigram import IntArray, UnigramTable, unigram_table
from pipeline.prepare.encode.by_line.word_cache import WordTable, distinct_runs, gather
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids

_CHARACTERS_AT_ONCE = 1 << 23


@dataclass(slots=True)
class Lines:
    """The ids of some texts, one after another, each with the newline that ends it."""

    ids: Ids
    starts: IntArray
    """Where each text's ids begin, and at last the number of ids: text i with its newline is
    ``ids[starts[i] : starts[i + 1]]``."""
    is_context_free: npt.NDArray[np.bool_]
    """Whether a text's ids are those of its words: a part of it that begins after a space then
    has the same ids alone."""


class LineTokenizer:
    """Gives texts the ids that the tokenizer gives them, each with a newline at its end."""

    def __init__(self, tokenizer: TextTokenizer, dtype: npt.DTypeLike) -> None:
        self._tokenizer, self._dtype = tokenizer, dtype
        table = unigram_table(tokenizer)
        self._words = _WordLines(tokenizer, table, dtype) if table is not None else None

    @property
    def goes_by_words(self) -> bool:
        """Whether no token goes beyond a space, a newline or a tab."""
        return self._words is not None

    def encode(self, texts: Sequence[str]) -> Lines:
        """Return the ids of each text followed by a newline."""
        if self._words is None or not texts:
            return _joined(self._whole([text + "\n" for text in texts]), self._dtype)
        is_long = np.array([len(text) > _CHARACTERS_AT_ONCE for text in texts])
        lines = self._by_words(
            ["" if long else text for long, text in zip(is_long, texts, strict=True)]
        )
        lines.is_context_free &= ~is_long
        chosen = np.flatnonzero(~lines.is_context_free)
        if not len(chosen):
            return lines
        return _replaced(lines, chosen, self._by_line([texts[int(i)] for i in chosen]))

    def encode_alone(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text without a newline, as the tokenizer itself gives them."""
        if self._words is None:
            return self._whole(texts)
        found = self.encode(texts)
        return [found.ids[start : end - 1] for start, end in pairwise(found.starts)]

    def _by_words(self, texts: Sequence[str]) -> Lines:
        assert self._words is not None, "see goes_by_words"
        return _concatenated([self._words.encode(some) for some in _groups(texts)])

    def _by_line(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of texts of several lines, each with a newline at its end.

        No token crosses a newline: the tokenizer, which takes a hundred times a text's memory,
        gets only the lines whose words depend on each other.
        """
        split = [text.split("\n") for text in texts]
        lines = [line for some in split for line in some]
        found = self._by_words(lines)
        irregular = np.flatnonzero(~found.is_context_free)
        whole = self._whole([lines[int(i)] + "\n" for i in irregular])
        found = _replaced(found, irregular, whole)
        bounds = found.starts[np.cumsum([0, *map(len, split)])]
        return [found.ids[start:end] for start, end in pairwise(bounds)]

    def _whole(self, texts: Sequence[str]) -> list[Ids]:
        return [
            np.array(ids, self._dtype)
            for some in _groups(texts)
            for ids in self._tokenizer.encode_batch(some)
        ]


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in groups of not too many characters; one text may be a group."""
    start = size = 0
    for i, text in enumerate(texts):
        if size and size + len(text) > _CHARACTERS_AT_ONCE:
            yield texts[start:i]
            start, size = i, 0
        size += len(text)
    yield texts[start:]


def _concatenated(groups: list[Lines]) -> Lines:
    if len(groups) == 1:
        return groups[0]
    before = np.cumsum([0, *(group.starts[-1] for group in groups)])
    starts = [group.starts[:-1] + at for group, at in zip(groups, before[:-1], strict=True)]
    return Lines(
        np.concatenate([group.ids for group in groups]),
        np.concatenate([*starts, before[-1:]]),
        np.concatenate([group.is_context_free for group in groups]),
    )


def _joined(ids: list[Ids], dtype: npt.DTypeLike) -> Lines:
    values = np.concatenate(ids) if ids else np.empty(0, dtype)
    return Lines(values, np.cumsum([0, *map(len, ids)]), np.zeros(len(ids), bool))


def _replaced(lines: Lines, chosen: IntArray, ids: list[Ids]) -> Lines:
    """Return lines with other ids for some of them."""
    sizes = np.diff(lines.starts)
    sizes[chosen] = list(map(len, ids))
    pieces, at = [], 0
    for i, new in zip(chosen, ids, strict=True):
        pieces += [lines.ids[at : lines.starts[i]], new]
        at = lines.starts[i + 1]
    pieces.append(lines.ids[at:])
    return Lines(
        np.concatenate(pieces), np.concatenate([[0], np.cumsum(sizes)]), lines.is_context_free
    )


class _WordLines:
    """Gives texts the ids of their words.

    Args:
        tokenizer: The lossless tokenizer.
        table: Segments its words.
        dtype: Of the ids.
    """

    def __init__(self, tokenizer: TextTokenizer, table: UnigramTable, dtype: npt.DTypeLike) -> None:
        (self._newline,), (self._tab,) = tokenizer.encode_batch(["\n", "\t"])
        self._words = WordTable(tokenizer, table, dtype)

    def encode(self, texts: Sequence[str]) -> Lines:
        """Return the ids of texts; those of an irregular text are not to be used."""
        encoded = [text.encode("utf-8") for text in texts]
        characters = np.frombuffer(bytearray(b"\n".join([b"", *encoded, b""])), np.uint8)
        is_cut = characters == ord(" ")
        is_cut |= characters == ord("\n")
        is_cut |= characters == ord("\t")
        cuts = np.flatnonzero(is_cut)
        before = characters[cuts]
        characters[cuts] = ord(" ")  # a newline or tab leads the ids of the same word
        words, numbers = distinct_runs(characters, cuts)
        found = self._words.encode(words)
        starts, sizes = found.starts[numbers], found.sizes[numbers]
        leads = np.flatnonzero(before != ord(" "))
        starts[leads] -= 1
        sizes[leads] += 1
        # A newline or tab with nothing after it brings the dummy along only before a space.
        is_bare = np.append(np.diff(cuts[leads]) == 1, True)
        sizes[leads[is_bare]] -= 1
        ids, bounds = gather(found.ids, starts, sizes)
        ids[bounds[:-1][before == ord("\n")]] = self._newline
        ids[bounds[:-1][before == ord("\t")]] = self._tab
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1
        # The cut before each text is the newline that ends the one before it.
        first = np.searchsorted(cuts, np.concatenate([[0], np.cumsum(lengths)]))
        starts = bounds[first].astype(np.int64) + 1
        is_context_free = np.ones(len(texts), bool)
        odd = np.flatnonzero(found.is_context_dependent[numbers])
        is_context_free[np.searchsorted(first, odd, side="right") - 1] = False
        return Lines(ids[starts[0] :], starts - starts[0], is_context_free)
