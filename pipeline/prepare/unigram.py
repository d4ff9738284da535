r"""Words to ids, many at once: the Unigram model's best segmentation, vectorised over words.

The tokenizer finds the segmentation of a word with the highest sum of scores, one word at a time.
Here a whole table of words is segmented together, place by place, with the same sums in the same
order and the same rule for equal ones (the first found stays), in the same float64: the ids are
the tokenizer's own to the last tie, several times as fast. Only printable ASCII is done this way,
which the normaliser leaves as it is; what else there is stays with the tokenizer.

Source: Kudo, "Subword Regularization" (2018), for the model; the rules for ties are those of
``tokenizers`` (``Unigram::encode_optimized``).
"""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.lossless import SPACE, is_lossless
from pipeline.tokenizer import TextTokenizer

IntArray = npt.NDArray[np.int64]

_FIRST, _LAST = 0x20, 0x7E  # a space stands for the piece "▁"
_WIDTH = _LAST - _FIRST + 1
_MAX_LENGTH = 128  # the work of a table grows with its longest word; the rest is rare


class UnigramTable:
    """The pieces of printable ASCII as a trie in arrays.

    ``_next[node * width + character]`` is the node after a character, 0 where there is none;
    ``_piece[node]`` is the id of the piece that ends there, or -1; ``_score[node]`` its score.
    """

    def __init__(self, pieces: Sequence[tuple[str, float]], num_controls: int = 3) -> None:
        """Build the trie.

        Args:
            pieces: All pieces with their scores, in id order.
            num_controls: How many of the first are control ids, which no text becomes.
        """
        texts = [piece.replace(SPACE, " ") for piece, _ in pieces]
        # The pre-tokenizer splits at "<", so no other piece with one is ever found.
        kept = [
            i
            for i, text in enumerate(texts)
            if i >= num_controls and _is_plain(text) and ("<" not in text or text == "<")
        ]
        self._next, nodes = _build_trie([texts[i] for i in kept])
        self._piece = np.full(len(self._next) // _WIDTH, -1, np.int32)
        self._piece[nodes] = kept
        scores = np.array([score for _, score in pieces])
        self._score = np.where(self._piece >= 0, scores[self._piece], -np.inf)
        single = np.flatnonzero(self._piece[self._next[:_WIDTH]] >= 0)
        self._is_strange = np.ones(256, np.int32)
        self._is_strange[_FIRST + single] = 0

    @property
    def has_space(self) -> bool:
        """Whether the dummy before each word is a piece of its own."""
        return not self._is_strange[ord(" ")]

    def takes(
        self, text: npt.NDArray[np.uint8], starts: IntArray, lengths: IntArray
    ) -> npt.NDArray[np.bool_]:
        """Tell which words can be segmented here: not too long, and each character a piece.

        Args:
            text: UTF-8.
            starts: Where each word's dummy stands: any character, no part of the word.
            lengths: Of each word, with its dummy.
        """
        strange = np.concatenate([[0], np.cumsum(self._is_strange[text], dtype=np.int32)])
        has_strange = strange[starts + lengths] != strange[starts + 1]
        is_taken: npt.NDArray[np.bool_] = (lengths > 1) & (lengths <= _MAX_LENGTH) & ~has_strange
        return is_taken

    def segment(
        self, text: npt.NDArray[np.uint8], starts: IntArray, lengths: IntArray
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the ids of each word with the dummy ``▁`` before it.

        Args:
            text: As ``takes`` has it.
            starts: The same, of at least one word; only such as ``takes`` takes.
            lengths: The same.

        Returns:
            The ids of all words, one word's after another's, and how many each has.
        """
        # Longest first: the words that reach a place are then the first so many.
        order = np.argsort(-lengths, kind="stable")
        words, nodes = self._best_nodes(text, starts[order], lengths[order])
        return _gather(self._piece, words, nodes, order=order)

    def _best_nodes(
        self, text: npt.NDArray[np.uint8], starts: IntArray, lengths: IntArray
    ) -> tuple[list[IntArray], list[npt.NDArray[np.int32]]]:
        """Return the words and the last piece of each, then those with one before it, and so on.

        Words are numbered by their place in ``starts``.
        """
        longest = int(lengths[0])
        reach = [int(n) for n in np.searchsorted(-lengths, -np.arange(longest), side="left")]
        column = [np.zeros(len(lengths), np.int32)]  # the dummy
        column += [
            text[starts[: reach[at]] + at].astype(np.int32) - _FIRST for at in range(1, longest)
        ]
        sizes = [len(lengths), *reach]
        score = [np.full(size, -np.inf) for size in sizes]
        ending = [np.zeros(size, np.int32) for size in sizes]
        width = [np.zeros(size, np.int8) for size in sizes]
        score[0][:] = 0.0
        for at in range(longest):
            alive = np.arange(reach[at])
            node = self._next[column[at]]
            for size in range(1, longest - at + 1):
                end = at + size
                sums = score[at][alive] + self._score[node]
                better = np.flatnonzero(sums > score[end][alive])
                chosen = alive[better]
                score[end][chosen] = sums[better]
                ending[end][chosen] = node[better]
                width[end][chosen] = size
                if end == longest:
                    break
                alive = alive[: np.searchsorted(alive, reach[end])]
                node = self._next[node[: len(alive)] * _WIDTH + column[end][alive]]
                found = np.flatnonzero(node)
                alive, node = alive[found], node[found]
                if not len(alive):
                    break
            # The pre-tokenizer splits at "<": what follows starts from nothing.
            score[at + 1][np.flatnonzero(column[at] == ord("<") - _FIRST)] = 0.0
        return _walk_back(ending, width, lengths)


def _walk_back(
    ending: list[npt.NDArray[np.int32]], width: list[npt.NDArray[np.int8]], lengths: IntArray
) -> tuple[list[IntArray], list[npt.NDArray[np.int32]]]:
    base = np.cumsum([0, *map(len, ending)])
    nodes, widths = np.concatenate(ending), np.concatenate(width)
    word, end = np.arange(len(lengths)), lengths
    words, found = [], []
    while len(word):
        place = base[end] + word
        words.append(word)
        found.append(nodes[place])
        end = end - widths[place]
        left = end > 0
        word, end = word[left], end[left]
    return words, found


def _gather(
    piece: npt.NDArray[np.int32],
    words: list[IntArray],
    nodes: list[npt.NDArray[np.int32]],
    *,
    order: IntArray,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Put the pieces, which come last first and word by word in ``order``, in their places."""
    counts = np.zeros(len(order), np.int32)
    for word in words:
        counts[order[word]] += 1
    ends = np.cumsum(counts)
    ids = np.empty(ends[-1], np.int32)
    for back, (word, node) in enumerate(zip(words, nodes, strict=True)):
        ids[ends[order[word]] - 1 - back] = piece[node]
    return ids, counts


def _build_trie(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return the trie's transitions, and the node where each text ends."""
    lengths = np.array(list(map(len, texts)))
    longest = int(lengths.max())
    padded = "".join(text.ljust(longest) for text in texts).encode("ascii")
    codes = np.frombuffer(padded, np.uint8).reshape(len(texts), longest).astype(np.int64) - _FIRST
    nodes = np.zeros(len(texts), np.int64)
    edges, size = [], 1
    for at in range(longest):
        alive = np.flatnonzero(lengths > at)
        found, which = np.unique(nodes[alive] * _WIDTH + codes[alive, at], return_inverse=True)
        edges.append(found)
        nodes[alive] = size + which
        size += len(found)
    following = np.zeros(size * _WIDTH, np.int32)
    following[np.concatenate(edges)] = np.arange(1, size)
    return following, nodes


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def unigram_table(tokenizer: TextTokenizer) -> UnigramTable | None:
    """Return the table of a lossless T5 tokenizer; None where its ids cannot be had this way."""
    # The backend's own scores, not those in the file: its parser is off by a bit here and there,
    # and that decides between equal sums.
    spec = json.loads(tokenizer.backend.to_str())
    if not is_lossless(spec):
        return None
    table = UnigramTable([(piece, float(score)) for piece, score in spec["model"]["vocab"]])
    return table if table.has_space else None
