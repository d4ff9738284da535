"""Pieces as a trie in arrays, against dictionaries."""

import random

import numpy as np
import pytest

from pipeline.prepare.encode.by_line.trie import NOWHERE, Trie


def rows_of(pieces: list[list[int]]) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
    longest = max(map(len, pieces))
    return np.array([piece + [0] * (longest - len(piece)) for piece in pieces], np.int32)


def test_pieces_share_the_nodes_of_their_beginnings() -> None:
    trie, nodes = Trie.of(rows_of([[2], [1, 2], [1, 3], [1]]), 4)
    assert nodes.tolist() == [3, 4, 5, 2], "numbered level by level, the root 1"
    assert trie.first(np.array([0, 1, 2, 3])).tolist() == [NOWHERE, 2, 3, NOWHERE]
    found, following = trie.following(np.array([2, 2, 3, 2]), np.array([3, 1, 2, 2]))
    assert (found.tolist(), following.tolist()) == ([0, 3], [5, 4])


@pytest.mark.parametrize("seed", range(20))
def test_every_text_is_led_as_a_search_in_the_pieces_would(seed: int) -> None:
    draw = random.Random(seed)
    width = draw.choice([2, 3, 5, 40])
    pieces = [
        [draw.randrange(1, width) for _ in range(draw.randint(1, 5))]
        for _ in range(draw.randint(1, 60))
    ]
    trie, nodes = Trie.of(rows_of(pieces), width)
    beginnings = {tuple(piece[:size]) for piece in pieces for size in range(1, len(piece) + 1)}
    assert trie.size == len(beginnings) + 2, "nowhere, and the root"
    ends = dict(zip(map(tuple, pieces), nodes.tolist(), strict=True))
    for _ in range(200):
        text = [draw.randrange(width) for _ in range(7)]
        (node,) = trie.first(np.array(text[:1]))
        for size in range(1, 7):
            assert (node != NOWHERE) == (tuple(text[:size]) in beginnings)
            assert ends.get(tuple(text[:size]), node) == node
            found, following = trie.following(np.array([node]), np.array(text[size : size + 1]))
            if node == NOWHERE:
                assert not len(found), "from nowhere no way leads on"
                break
            node = following[0] if len(found) else NOWHERE
