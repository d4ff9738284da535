r"""Distinct words to ids: each is put together from units, and each unit is segmented once.

Words that repeat are one word by now; in a part of four million characters 40,000 are left. They
fall into units (``unigram.py``), which repeat from part to part: of 25,000 in a part, 7,000 are
new. Units keep their ids, and words gather them. A word with a unit that is not sure of them goes
the tokenizer's own way, and is kept as a whole.
"""

import unicodedata
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.prepare.encode.by_line.unigram import (
    LONGEST_UNIT,
    LONGEST_WORD,
    Bytes,
    Flags,
    IntArray,
    UnigramTable,
)
from pipeline.store.arrow_numpy import as_numpy
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids

_MAX_KEPT = 300_000  # about 45 MB; then all are forgotten, so that memory stays flat
_MAX_BYTES = 1 << 25  # of all that is kept; some are as long as a picture in base64
_MOST_SEGMENTED = 100_000  # a table of units takes memory meanwhile

_UNSURE = 0  # the number of every unit without ids


@dataclass(slots=True)
class WordIds:
    """The ids of some words."""

    ids: Ids
    starts: npt.NDArray[Any]
    """Where each word's ids begin in ``ids``."""
    sizes: npt.NDArray[np.int32]
    """How many it has."""
    is_context_dependent: Flags
    """Whether they depend on what stands around the word."""


class WordTable:
    """Gives words their ids, and keeps those of units and of words that are none.

    Args:
        tokenizer: The lossless tokenizer.
        table: Segments its units.
        dtype: Of the ids.
    """

    def __init__(self, tokenizer: TextTokenizer, table: UnigramTable, dtype: npt.DTypeLike) -> None:
        self._tokenizer, self._table, self._dtype = tokenizer, table, dtype
        self._forget()

    def encode(self, words: pa.LargeBinaryArray) -> WordIds:
        """Return the ids of words, each with the dummy ``▁`` before it.

        Args:
            words: One at least, each with a space before it; no slice of an array.
        """
        text, bounds = _buffers(words)
        starts = self._table.unit_starts(text, bounds[:-1])
        numbers = self._number_units(text, starts)
        ids, of_units = gather(self._ids, self._starts[numbers], self._sizes[numbers])
        first = np.searchsorted(starts, bounds)
        of_words = of_units[first]
        found = WordIds(ids, of_words[:-1], np.diff(of_words), np.zeros(len(words), bool))
        is_unsure = np.diff(bounds) > LONGEST_WORD
        unsure = np.flatnonzero(numbers == _UNSURE)
        is_unsure[np.searchsorted(first, unsure, side="right") - 1] = True
        chosen = np.flatnonzero(is_unsure)
        if len(chosen):
            places = zip(bounds[chosen] + 1, bounds[chosen + 1], strict=True)
            texts = [text[start:end].tobytes().decode("utf-8") for start, end in places]
            self._replace(found, chosen, texts)
        return found

    def _replace(self, found: WordIds, chosen: IntArray, texts: list[str]) -> None:
        """Give the chosen words the tokenizer's own ids."""
        numbers = self._number_whole(texts)
        sizes = self._sizes[numbers]
        ids, bounds = gather(self._ids, self._starts[numbers], sizes)
        found.starts[chosen] = len(found.ids) + bounds[:-1]
        found.sizes[chosen] = sizes
        found.is_context_dependent[chosen] = self._is_context_dependent[numbers]
        found.ids = np.concatenate([found.ids, ids])

    def _number_units(self, text: Bytes, starts: IntArray) -> npt.NDArray[np.int32]:
        """Return the number of each unit of a text."""
        units, indices = distinct_runs(text, starts)
        keys: list[bytes] = units.to_pylist()
        text, bounds = _buffers(units)
        lengths = np.diff(bounds)
        numbers, new = self._find(keys, len(text))
        numbers[new] = _UNSURE
        short = new[lengths[new] <= LONGEST_UNIT]
        for at in range(0, len(short), _MOST_SEGMENTED):
            some = short[at : at + _MOST_SEGMENTED]
            ids, sizes, is_sure = self._table.segment(text, bounds[some], lengths[some])
            numbers[some[is_sure]] = self._add(ids, sizes[is_sure])
        self._keep([keys[i] for i in new], numbers[new])
        return numbers[indices]

    def _number_whole(self, texts: list[str]) -> npt.NDArray[np.int32]:
        """Return the number of each word that the tokenizer segments."""
        numbers, new = self._find(texts, sum(map(len, texts)))
        keys = [texts[i] for i in new]
        ids = self._tokenizer.encode_batch(keys)
        sizes = np.array(list(map(len, ids)), np.int32)
        flat = np.fromiter(chain.from_iterable(ids), self._dtype, sizes.sum())
        is_context_dependent = [
            not i or _joins_spaces(text) for i, text in zip(ids, keys, strict=True)
        ]
        numbers[new] = self._add(flat, sizes, is_context_dependent)
        self._keep(keys, numbers[new])
        return numbers

    def _find(
        self, keys: list[bytes] | list[str], size: int
    ) -> tuple[npt.NDArray[np.int32], IntArray]:
        """Return the numbers of keys, and which are new; forget all where these are too many."""
        numbers = np.fromiter(map(self._numbers.get, keys, repeat(-1)), np.int32, len(keys))
        new = np.flatnonzero(numbers < 0)
        if len(self._numbers) + len(new) > _MAX_KEPT or self._size + size > _MAX_BYTES:
            self._forget()
            new = np.arange(len(keys))
        return numbers, new

    def _keep(self, keys: list[bytes] | list[str], numbers: npt.NDArray[np.int32]) -> None:
        self._numbers.update(zip(keys, numbers.tolist(), strict=True))
        self._size += sum(map(len, keys))

    def _forget(self) -> None:
        """Keep nothing but the number that stands for no ids."""
        self._size = 0  # of all keys
        self._numbers: dict[bytes | str, int] = {}  # units are bytes, words as a whole are str
        self._ids: Ids = np.empty(0, self._dtype)
        self._starts, self._sizes = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._is_context_dependent = np.zeros(1, bool)

    def _add(
        self, ids: Ids, sizes: npt.NDArray[np.int32], is_context_dependent: list[bool] | None = None
    ) -> npt.NDArray[np.int32]:
        """Keep the ids of some units or words, one's after another's; return their numbers."""
        first = len(self._sizes)
        starts = (len(self._ids) + np.cumsum(sizes) - sizes).astype(np.int32)
        self._ids = np.concatenate([self._ids, ids.astype(self._dtype)])
        self._starts = np.concatenate([self._starts, starts])
        self._sizes = np.concatenate([self._sizes, sizes])
        more = (
            np.zeros(len(sizes), bool)
            if is_context_dependent is None
            else np.array(is_context_dependent, bool)
        )
        self._is_context_dependent = np.concatenate([self._is_context_dependent, more])
        return np.arange(first, len(self._sizes), dtype=np.int32)


def distinct_runs(
    text: Bytes, starts: IntArray
) -> tuple[pa.LargeBinaryArray, npt.NDArray[np.int32]]:
    """Return the distinct ones of the runs that a text falls into, and each run's number there.

    Args:
        text: Any bytes.
        starts: Where the runs begin; the first at 0.
    """
    buffers = [None, pa.py_buffer(np.append(starts, len(text))), pa.py_buffer(text)]
    runs = pa.Array.from_buffers(pa.large_binary(), len(starts), buffers).dictionary_encode()
    return runs.dictionary, as_numpy(runs.indices)


def _buffers(array: pa.LargeBinaryArray) -> tuple[Bytes, IntArray]:
    """Return the text of an array that is no slice, and where each part of it begins and ends."""
    _, offsets, text = array.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(array) + 1)
    return np.frombuffer(text, np.uint8, bounds[-1]), bounds


def gather(
    ids: Ids, starts: npt.NDArray[Any], sizes: npt.NDArray[np.int32]
) -> tuple[Ids, npt.NDArray[Any]]:
    """Return runs of ids one after another, and their bounds: one more than there are runs.

    Args:
        ids: What the runs are taken from.
        starts: Where each begins there.
        sizes: How many ids each has.
    """
    # The usual text is far from the end of int32.
    narrow: npt.DTypeLike = np.int32 if int(sizes.sum(dtype=np.int64)) < 1 << 31 else np.int64
    bounds = np.zeros(len(sizes) + 1, narrow)
    np.cumsum(sizes, out=bounds[1:])
    begins = bounds[:-1]
    if not sizes.all():
        full = np.flatnonzero(sizes)
        starts, sizes, begins = starts[full], sizes[full], begins[full]
    # Places in ids, first as steps: 1 within a run, a jump where another begins.
    places = np.ones(bounds[-1], narrow)
    places[begins[:1]] = starts[:1]
    places[begins[1:]] += starts[1:] - starts[:-1] - sizes[:-1]
    np.cumsum(places, out=places)
    return ids[places], bounds


# What may form one character with a space before or after it: combining marks and the like (in
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
    """Return whether a word may form one character with a space beside it."""
    first, last = word[0], word[-1]
    return (
        unicodedata.category(first) in _MARKS
        or first in _OTHER_MARKS
        or unicodedata.category(last) in _PREFIXES
        or last in _OTHER_PREFIXES
    )
