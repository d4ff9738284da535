"""Pieces as a trie in arrays, through which many texts are led at once."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

NOWHERE, _ROOT = 0, 1
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Trie:
    """Nodes, numbered from the root on, level by level, and what follows them.

    What follows a node by a code has the slot ``_base[node] + code``. Most nodes are followed by
    one other and take a single slot anywhere, so all slots take a quarter of the memory of a row of
    codes for each node: fresh memory costs more than the search.
    """

    _base: npt.NDArray[np.int64]
    _node: npt.NDArray[np.int32]
    """Of each slot, the node that it is of: another one is not followed by its code."""
    _next: npt.NDArray[np.int32]
    """Of each slot, the node that follows."""

    @classmethod
    def of(cls, codes: npt.NDArray[np.int32], width: int) -> tuple[Self, npt.NDArray[np.int64]]:
        """Return the trie of some pieces, and the node where each of them ends.

        Args:
            codes: One row a piece, at least one code and then zeros.
            width: The number of codes, 0 among them.
        """
        order = np.lexsort(codes.T[::-1])
        rows = codes[order]
        # A prefix is new where it differs from that of the row before.
        is_new = np.ones(rows.shape, bool)
        np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1, out=is_new[1:])
        is_new = (is_new & (rows > 0)).T
        ends = (_ROOT + np.cumsum(is_new, dtype=np.int32)).reshape(is_new.shape)
        starts = np.concatenate([np.full((1, len(rows)), _ROOT, np.int32), ends[:-1]])
        nodes = np.empty(len(rows), np.int64)
        nodes[order] = ends[np.count_nonzero(rows, axis=1) - 1, np.arange(len(rows))]
        return cls._packed(starts[is_new], rows.T[is_new], ends[is_new], width), nodes

    @classmethod
    def _packed(
        cls,
        starts: npt.NDArray[np.int32],
        codes: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
        width: int,
    ) -> Self:
        """Return a trie of edges: from which node, by which code, to which node."""
        count = np.bincount(starts, minlength=ends[-1] + 1)
        count[_ROOT] = width  # its row comes first
        forks = np.flatnonzero(count > 1)
        base = np.zeros(len(count), np.int64)
        base[forks] = width * np.arange(len(forks))
        is_single = count[starts] == 1
        singles = width * len(forks) + np.arange(np.count_nonzero(is_single))
        base[starts[is_single]] = singles - codes[is_single]
        slots = base[starts] + codes
        size = width * (len(forks) + 1) + len(singles)  # another code may lead past a single's slot
        node, following = np.full(size, _NOBODY, np.int32), np.full(size, NOWHERE, np.int32)
        node[slots], following[slots] = starts, ends
        return cls(base, node, following)

    @property
    def size(self) -> int:
        """One more than the highest number of a node."""
        return len(self._base)

    def first(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return the nodes that follow the root by some codes, ``NOWHERE`` where none does."""
        return self._next[codes]

    def following(
        self, nodes: npt.NDArray[np.int32], codes: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return which nodes are followed by another, each by its code, and these others."""
        slots = self._base[nodes] + codes
        found = np.flatnonzero(self._node[slots] == nodes)
        return found, self._next[slots[found]]
