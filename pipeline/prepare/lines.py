r"""Lines to ids: each distinct word is tokenized once, and its ids are gathered wherever it stands.

No piece of the lossless tokenizer crosses a space, a newline or a tab, and real text repeats its
words: 17 million in an export hold 0.6 million distinct ones. So texts are cut at these three
characters, the cuts are numbered by Arrow's dictionary, the words not met before are tokenized,
and the ids of all are gathered:

    "a  b\na"  ->  " a" " " " b" "\na"  ->  0 1 2 3  ->  ▁a  ▁  ▁b  \n ▁a

Where a word's ids depend on what stands around it, the whole text goes the tokenizer's own way:
a combining mark behind a space forms one character with it, and a word that the normaliser leaves
nothing of gives no dummy when it is alone in its line.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.prepare.unigram import IntArray, UnigramTable, unigram_table
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids

_MAX_WORDS = 300_000  # about 45 MB; then all are forgotten, so that memory stays flat

_MAX_BYTES = 1 << 25  # of all words kept; some are as long as a picture in base64
_CHARACTERS_AT_ONCE = 1 << 23
_MOST_LEARNED = 100_000

# The numbers of what has no word behind it, and what is added to them for the dummy.
_SPACE, _NEWLINE, _TAB, _WITH_DUMMY = 0, 1, 2, 2


@dataclass(slots=True)
class Lines:
    """The ids of some texts, one after another, each with the newline that ends it."""

    ids: Ids
    starts: IntArray
    """Where each text's ids begin, and at last the number of ids: text i with its newline is
    ``ids[starts[i] : starts[i + 1]]``."""
    is_regular: npt.NDArray[np.bool_]
    """Whether a text's ids are those of its words: a part of it that begins behind a space then
    has the same ids alone."""


class LineTokenizer:
    """Gives texts the ids that the tokenizer gives them, each with a newline at its end."""

    def __init__(self, tokenizer: TextTokenizer, dtype: npt.DTypeLike) -> None:
        """Take a tokenizer of any kind; only the lossless T5's goes by words."""
        self._tokenizer, self._dtype = tokenizer, dtype
        table = unigram_table(tokenizer)
        self._words = _WordTable(tokenizer, table, dtype) if table is not None else None

    def encode(self, texts: Sequence[str]) -> Lines:
        """Return the ids of each text followed by a newline."""
        if self._words is None or not texts:
            ids = self._whole([text + "\n" for text in texts])
            return _joined(ids, self._dtype)
        lines = _concatenated([self._words.encode(some) for some in _groups(texts)])
        irregular = np.flatnonzero(~lines.is_regular)
        if not len(irregular):
            return lines
        whole = self._whole([texts[int(i)] + "\n" for i in irregular])
        return _replaced(lines, irregular, whole)

    def encode_alone(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text without a newline, as the tokenizer itself gives them."""
        return self._whole(texts)

    def _whole(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(ids, self._dtype) for ids in self._tokenizer.encode_batch(texts)]


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in groups of not too many characters: a part may be one conversation."""
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
        np.concatenate([group.is_regular for group in groups]),
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
    return Lines(np.concatenate(pieces), np.concatenate([[0], np.cumsum(sizes)]), lines.is_regular)


# What may form one character with a space before or behind it: combining marks and the like (in
# newer Unicode also what this Python has not heard of), and prefixes of numbers and syllables.
_MARKS = frozenset({"Mn", "Mc", "Me", "Cf", "Cn"})
_OTHER_MARKS = frozenset(
    "\u0e33\u0eb3\uff9e\uff9f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
)
_PREFIXES = frozenset({"Cf", "Cn"})
_OTHER_PREFIXES = frozenset(
    "\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85"
    "\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02"
)


def _joins_spaces(word: str) -> bool:
    """Tell whether a word may form one character with a space beside it."""
    first, last = word[0], word[-1]
    return (
        unicodedata.category(first) in _MARKS
        or first in _OTHER_MARKS
        or unicodedata.category(last) in _PREFIXES
        or last in _OTHER_PREFIXES
    )


class _WordTable:
    """The ids of every word met so far, each with the space, newline or tab before it.

    Args:
        tokenizer: The lossless tokenizer.
        table: Segments its plain words.
        dtype: Of the ids.
    """

    def __init__(self, tokenizer: TextTokenizer, table: UnigramTable, dtype: npt.DTypeLike) -> None:
        self._tokenizer, self._table, self._dtype = tokenizer, table, dtype
        newline, tab, spaces = tokenizer.encode_batch(["\n", "\t", " "])
        dummy = spaces[:1]  # a line of one space is the dummy and the space: twice this piece
        (self._newline,), (self._tab,) = newline, tab
        # A newline or tab with nothing but a space behind it brings the dummy along.
        self._constants = [dummy, newline, tab, newline + dummy, tab + dummy]
        self._forget()

    def encode(self, texts: Sequence[str]) -> Lines:
        """Return the ids of texts; those of an irregular text are not to be used."""
        encoded = [text.encode("utf-8") for text in texts]
        whole = b"\n" + b"\n".join(encoded) + b"\n"
        characters = np.frombuffer(whole, np.uint8)
        cuts = np.flatnonzero(
            (characters == ord(" ")) | (characters == ord("\n")) | (characters == ord("\t"))
        )
        numbers = self._number(whole, cuts)
        before_space = np.append(characters[cuts[1:]] == ord(" "), False)
        for bare in (_NEWLINE, _TAB):
            numbers[(numbers == bare) & before_space] += _WITH_DUMMY
        sizes = self._sizes[numbers]
        # A character is at most a few ids, so the usual part is far from the end of int32.
        narrow: npt.DTypeLike = np.int32 if len(whole) < 1 << 27 else np.int64
        ends: npt.NDArray[Any] = np.cumsum(sizes, dtype=narrow)
        begins = ends - sizes
        places = np.repeat(self._starts[numbers] - begins, sizes)
        places += np.arange(ends[-1], dtype=places.dtype)
        ids = self._ids[places]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1
        # The cut before each text is the newline that ends the one before it.
        first = np.searchsorted(cuts, np.concatenate([[0], np.cumsum(lengths)]))
        starts = begins[first].astype(np.int64) + 1
        is_regular = np.ones(len(texts), bool)
        odd = np.flatnonzero(self._is_odd[numbers])
        is_regular[np.searchsorted(first, odd, side="right") - 1] = False
        return Lines(ids[starts[0] :], starts - starts[0], is_regular)

    def _number(self, text: bytes, cuts: IntArray) -> npt.NDArray[np.int32]:
        """Return the number of each word, as they stand between the cuts."""
        offsets = np.append(cuts, len(text))
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        words = pa.Array.from_buffers(pa.large_binary(), len(cuts), buffers).dictionary_encode()
        distinct: list[bytes] = words.dictionary.to_pylist()
        numbers = self._find(distinct)
        new = np.flatnonzero(numbers < 0)
        size = sum(map(len, distinct))
        if len(self._numbers) + len(new) > _MAX_WORDS or self._size + size > _MAX_BYTES:
            self._forget()
            numbers = self._find(distinct)
            new = np.flatnonzero(numbers < 0)
        for at in range(0, len(new), _MOST_LEARNED):  # a table of words takes memory meanwhile
            some = new[at : at + _MOST_LEARNED]
            numbers[some] = self._learn(
                [distinct[i] for i in some], _Bytes.of(words.dictionary, some)
            )
        indices: npt.NDArray[np.int32] = words.indices.to_numpy()
        return numbers[indices]

    def _find(self, words: list[bytes]) -> npt.NDArray[np.int32]:
        """Return the numbers of words; -1 for what was not met before."""
        return np.array(list(map(self._numbers.get, words, repeat(-1))), np.int32)

    def _forget(self) -> None:
        """Keep the constants alone."""
        self._size = 0
        self._numbers = {b" ": _SPACE, b"\n": _NEWLINE, b"\t": _TAB}
        sizes = np.array(list(map(len, self._constants)), np.int32)
        self._ids = np.concatenate(self._constants).astype(self._dtype)
        self._starts, self._sizes = np.cumsum(sizes, dtype=np.int32) - sizes, sizes
        self._is_odd = np.zeros(len(sizes), bool)

    def _learn(self, new: list[bytes], words: "_Bytes") -> npt.NDArray[np.int32]:
        """Tokenize words with the character before each; return their numbers."""
        is_plain = self._table.takes(words.text, words.starts, words.lengths)
        plain, other = np.flatnonzero(is_plain), np.flatnonzero(~is_plain)
        ids: list[Ids] = []
        sizes = np.zeros(len(new), np.int32)
        if len(plain):
            found, sizes[plain] = self._table.segment(
                words.text, words.starts[plain], words.lengths[plain]
            )
            ids.append(found.astype(self._dtype))
        is_odd = np.zeros(len(new), bool)
        if len(other):
            texts = [new[i][1:].decode("utf-8") for i in other]
            whole = self._tokenizer.encode_batch(texts)
            sizes[other] = list(map(len, whole))
            ids.append(np.fromiter(chain.from_iterable(whole), self._dtype))
            is_odd[other] = [
                not i or _joins_spaces(text) for i, text in zip(whole, texts, strict=True)
            ]
        self._size += sum(map(len, new))
        first = len(self._sizes)
        numbers = np.arange(first, first + len(new), dtype=np.int32)
        self._numbers.update(zip(new, numbers.tolist(), strict=True))
        self._append(np.concatenate(ids), np.concatenate([plain, other]), sizes, words.first())
        self._is_odd = np.concatenate([self._is_odd, is_odd])
        return numbers

    def _append(self, ids: Ids, order: IntArray, sizes: Ids, before: npt.NDArray[np.uint8]) -> None:
        """Append ids, which stand in ``order``, each word's behind those of what is before it."""
        ordered = sizes[order]
        lead = before[order] != ord(" ")
        at = np.cumsum(ordered) - ordered
        pieces = np.where(before[order[lead]] == ord("\n"), self._newline, self._tab)
        ids = np.insert(ids, at[lead], pieces.astype(self._dtype))
        starts = np.empty(len(order), np.int32)
        starts[order] = len(self._ids) + at + np.cumsum(lead) - lead
        self._ids = np.concatenate([self._ids, ids])
        self._starts = np.concatenate([self._starts, starts])
        self._sizes = np.concatenate([self._sizes, sizes + (before != ord(" "))], dtype=np.int32)


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Some words of an Arrow array, where they lie in its buffer."""

    text: npt.NDArray[np.uint8]
    starts: IntArray
    lengths: IntArray

    @classmethod
    def of(cls, words: pa.LargeBinaryArray, chosen: IntArray) -> "_Bytes":
        """Return the chosen ones of an array that is no slice."""
        _, offsets, text = words.buffers()
        bounds = np.frombuffer(offsets, np.int64, len(words) + 1)
        starts = bounds[chosen]
        return cls(np.frombuffer(text, np.uint8), starts, bounds[chosen + 1] - starts)

    def first(self) -> npt.NDArray[np.uint8]:
        """Return the first byte of each word."""
        return self.text[self.starts]
