r"""Words to ids, many at once: the Unigram model's best segmentation, vectorised over units.

The tokenizer finds the segmentation of a word with the highest sum of scores, one word at a time.
Where two characters stand side by side in no piece, every segmentation has a boundary; so words
fall into units, which repeat far more than words do:

    "devices)."  ->  "▁devices" ")."

A whole table of units is segmented together, place by place. The best pieces of a word are then
the best of its units, wherever the best is clear. Where two sums are equal or nearly so, the
tokenizer's choice depends on what stands before, and that it must make itself; as it must for
characters that are no pieces, that its normaliser changes, or that may form one with their
neighbours.

Source: Kudo, "Subword Regularization" (2018).
"""

import json
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.prepare.encode.by_line.trie import NOWHERE, Trie
from pipeline.tokenizer import TextTokenizer
from pipeline.tokenizer.vocabulary import SPACE

IntArray = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

LONGEST_UNIT = 32
"""Most bytes of a unit: the work of a table grows with its longest, and longer ones are rare."""

LONGEST_WORD = 1 << 16
"""Most bytes of a word whose units stand for themselves: a sum over more is too coarse."""

_NEAR = 1e-6  # sums over a word are far more exact than that
_NEVER = -1e300  # less than any sum, and its difference from -inf is a number


class UnigramTable:
    """The pieces as a trie over bytes, in arrays.

    ``_code[byte]`` numbers the bytes of pieces from 1, 0 is any other. The trie (``trie.py``) leads
    from node to node; ``_piece[node]`` is the id of the piece that ends there, or -1;
    ``_score[node]`` its score. ``_parts[256 * a + b]`` tells whether two bytes stand side by side
    in no piece.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[str, float]],
        normalize: Callable[[str], str],
        num_controls: int = 3,
    ) -> None:
        """Build the trie.

        Args:
            pieces: All pieces with their scores, in id order.
            normalize: The tokenizer's normaliser.
            num_controls: How many of the first are control ids, which no text becomes.
        """
        texts = [piece.replace(SPACE, " ") for piece, _ in pieces]
        known = {text for text in texts[num_controls:] if _stands_alone(text, normalize)}
        self.has_space = " " in known
        """Whether the dummy before each word is a piece of its own."""
        # The pre-tokenizer splits at "<", so no other piece with one is ever found.
        kept = [
            i
            for i, text in enumerate(texts)
            if i >= num_controls
            and text
            and known.issuperset(text)
            and ("<" not in text or text == "<")
        ]
        encoded = [texts[i].encode("utf-8") for i in kept]
        used = sorted(set(b"".join(encoded)))
        width = 1 + len(used)
        self._code = np.zeros(256, np.int32)
        self._code[used] = np.arange(1, width)
        codes = self._code[_padded(encoded)]
        self._trie, nodes = Trie.of(codes, width)
        self._piece = np.full(self._trie.size, -1, np.int32)
        self._piece[nodes] = kept
        scores = np.array([score for _, score in pieces])
        self._score = np.where(self._piece >= 0, scores[self._piece], -np.inf)
        parts = np.ones((width, width), bool)
        parts[codes[:, :-1], codes[:, 1:]] = False
        parts[0, :] = parts[:, 0] = True
        self._parts = parts[self._code[:, None], self._code].ravel()

    def unit_starts(self, text: Bytes, words: IntArray) -> IntArray:
        """Return where units begin.

        Args:
            text: UTF-8, words one after another, each with the space before it.
            words: Where each begins; the first at 0.
        """
        begins = np.empty(len(text), bool)
        begins[1:] = self._parts[text[:-1].astype(np.int32) << 8 | text[1:]]
        begins[words] = True
        return np.flatnonzero(begins)

    def segment(
        self, text: Bytes, starts: IntArray, lengths: IntArray
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Flags]:
        """Return the ids of each unit.

        Args:
            text: UTF-8.
            starts: Where each unit begins, at least one.
            lengths: Of each, in bytes; at most ``LONGEST_UNIT``.

        Returns:
            The ids of all units, one's after another's; how many each has; and whether they are
            sure to be the tokenizer's own, wherever the unit stands: one that is not has none.
        """
        # Longest first: the units that reach a place are then the first so many.
        order = np.argsort(-lengths, kind="stable")
        units, nodes = self._best_nodes(text, starts[order], lengths[order])
        ids, counts = _gather(self._piece, units, nodes, order=order)
        return ids, counts, counts > 0

    def _best_nodes(
        self, text: Bytes, starts: IntArray, lengths: IntArray
    ) -> tuple[list[IntArray], list[npt.NDArray[np.int32]]]:
        """Return the units and the last piece of each, then those with one before it, and so on.

        Units are numbered by their place in ``starts``; those that are not sure are left out.
        """
        longest = int(lengths[0])
        reach = [int(n) for n in np.searchsorted(-lengths, -np.arange(longest), side="left")]
        column = [self._code[text[starts[: reach[at]] + at]] for at in range(longest)]
        sizes = [len(lengths), *reach]
        score = [np.full(size, _NEVER) for size in sizes]
        ending = [np.zeros(size, np.int32) for size in sizes]
        width = [np.zeros(size, np.int8) for size in sizes]
        score[0][:] = 0.0
        is_sure = np.ones(len(lengths), bool)
        for at in range(longest):
            alive = np.arange(reach[at])
            node = self._trie.first(column[at])
            for size in range(1, longest - at + 1):
                end = at + size
                sums = score[at][alive] + self._score[node]
                gain = sums - score[end][alive]
                is_sure[alive[np.abs(gain) < _NEAR]] = False
                better = np.flatnonzero(gain > 0)
                chosen = alive[better]
                score[end][chosen] = sums[better]
                ending[end][chosen] = node[better]
                width[end][chosen] = size
                if end == longest:
                    break
                alive = alive[: np.searchsorted(alive, reach[end])]
                found, node = self._trie.following(node[: len(alive)], column[end][alive])
                alive = alive[found]
                if not len(alive):
                    break
        return _walk_back(ending, width, lengths, is_sure)


def _stands_alone(text: str, normalize: Callable[[str], str]) -> bool:
    """Return whether a text is a character that stays as it is, whatever stands beside it.

    Letters, numbers, punctuation and symbols of these blocks never form one character with their
    neighbours, so the normaliser sees each alone.
    """
    if len(text) != 1 or not (text < "\u0530" or "\u2010" <= text < "\u2100"):
        return False
    return text == " " or (unicodedata.category(text)[0] in "LNPS" and normalize(text) == text)


def _walk_back(
    ending: list[npt.NDArray[np.int32]],
    width: list[npt.NDArray[np.int8]],
    lengths: IntArray,
    is_sure: Flags,
) -> tuple[list[IntArray], list[npt.NDArray[np.int32]]]:
    base = np.cumsum([0, *map(len, ending)])
    nodes, widths = np.concatenate(ending), np.concatenate(width)
    reaches_end = nodes[base[lengths] + np.arange(len(lengths))] != NOWHERE
    unit = np.flatnonzero(is_sure & reaches_end)
    end = lengths[unit]
    units, found = [], []
    while len(unit):
        place = base[end] + unit
        units.append(unit)
        found.append(nodes[place])
        end = end - widths[place]
        left = end > 0
        unit, end = unit[left], end[left]
    return units, found


def _gather(
    piece: npt.NDArray[np.int32],
    units: list[IntArray],
    nodes: list[npt.NDArray[np.int32]],
    *,
    order: IntArray,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Put the pieces, which come last first and unit by unit in ``order``, in their places."""
    counts = np.zeros(len(order), np.int32)
    for unit in units:
        counts[order[unit]] += 1
    ends = np.cumsum(counts)
    ids = np.empty(ends[-1], np.int32)
    for back, (unit, node) in enumerate(zip(units, nodes, strict=True)):
        ids[ends[order[unit]] - 1 - back] = piece[node]
    return ids, counts


def _padded(pieces: Sequence[bytes]) -> Bytes:
    """Return one row a piece, with zeros after it."""
    longest = max(map(len, pieces))
    joined = b"".join(piece.ljust(longest, b"\0") for piece in pieces)
    return np.frombuffer(joined, np.uint8).reshape(len(pieces), longest)


def unigram_table(tokenizer: TextTokenizer) -> UnigramTable | None:
    """Return the table of a lossless T5 tokenizer; None where its ids cannot be found this way."""
    if not tokenizer.is_lossless:
        return None
    # The backend's own scores: its parser reads those in the file a bit differently from Python's.
    model = json.loads(tokenizer.backend.to_str())["model"]
    # Of a vocabulary with bytes, 250,000 pieces would be a table of hundreds of megabytes.
    if model["byte_fallback"]:
        return None
    pieces = [(piece, float(score)) for piece, score in model["vocab"]]
    table = UnigramTable(pieces, tokenizer.normalize)
    return table if table.has_space else None
