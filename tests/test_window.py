"""The window: what is dropped, in which order, and what the counts are called."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.window import TurnIds, Window, cut_header, cut_source, saved_length

PROMPT, EOS, BLANK = [90, 91], [1], [7, 7]


def window(length: int, prefix: list[int] | None = None) -> Window:
    return Window(
        length, np.array(prefix or [], int), np.array(PROMPT), np.array(EOS), np.array(BLANK)
    )


def ids(start: int, size: int) -> Any:
    return np.arange(start, start + size)


def row_of(head: Any, turns: list[Any], tag_length: int, w: Window) -> tuple[Any, str | None]:
    """Return the encoder row before an answer, and what was cut.

    A line stands before these turns and another behind them: neither may come into the row.
    """
    lines = [ids(-50, 9), *turns, ids(-30, 9)]
    run = TurnIds(np.concatenate(lines), [0, *np.cumsum([len(line) for line in lines]).tolist()])
    history, cut = cut_source(head, run, 1, 1 + len(turns), tag_length, w)
    return np.concatenate([w.prefix, head, *history, w.prompt, w.eos]), cut


@pytest.mark.parametrize(
    ("sizes", "expected", "cut"),
    [
        ([3, 3], [*range(10, 12), *range(100, 103), *range(200, 203)], None),
        ([3, 5], [*range(10, 12), *range(100, 103), *range(200, 205)], None),  # just fits
        ([3, 6], [*range(10, 12), *range(200, 206)], "history_cut"),
        ([9, 1, 1], [*range(10, 12), 200, 300], "history_cut"),
        ([1, 9, 1], [*range(10, 12), 300], "history_cut"),  # whole turns, the oldest first
        ([8], [*range(10, 12), *range(100, 108)], None),
        ([9], [*range(10, 12), 100, 101, *range(103, 109)], "question_cut"),
        ([1, 50], [*range(10, 12), 200, 201, *range(244, 250)], "question_cut"),
    ],
)
def test_the_oldest_whole_turns_go_first_and_the_last_keeps_tag_and_end(
    sizes: list[int], expected: list[int], cut: str | None
) -> None:
    turns = [ids(100 * (i + 1), size) for i, size in enumerate(sizes)]
    row, name = row_of(ids(10, 2), turns, 2, window(13))
    assert row.tolist() == [*expected, *PROMPT, *EOS]
    assert name == cut


@pytest.mark.parametrize(
    ("size", "last_turn", "expected"),
    [
        (5, 99, [10, 11, 12, 13, 14]),  # the room is 11, half of it 5
        (6, 99, [10, 11, 12, 7, 7]),
        (6, 6, [10, 11, 12, 7, 7]),
        (6, 5, [10, 11, 12, 13, 14, 15]),  # beside the last turn there is room for it
        (50, 5, [10, 11, 12, 13, 7, 7]),
        (8, 3, [*range(10, 18)]),
        (9, 3, [*range(10, 16), 7, 7]),
    ],
)
def test_a_header_is_cut_only_where_it_takes_the_last_turns_room_and_more_than_half(
    size: int, last_turn: int, expected: list[int]
) -> None:
    header, is_cut = cut_header(ids(10, size), last_turn, window(14))
    assert header.tolist() == expected
    assert is_cut == (expected[-1] == 7)


@given(
    length=st.integers(64, 200),
    header=st.integers(0, 150),
    turns=st.lists(st.integers(8, 90), min_size=1, max_size=6),
    prefix=st.integers(0, 1),
)
def test_a_row_never_exceeds_the_window_and_never_wastes_it(
    length: int, header: int, turns: list[int], prefix: int
) -> None:
    w = window(length, [7] * prefix)
    head, _ = cut_header(ids(1000, header), turns[-1], w)
    parts = [ids(10_000 * (i + 1), size) for i, size in enumerate(turns)]
    assert len(head) == min(header, max(w.room - turns[-1], w.room // 2))
    row, cut = row_of(head, parts, 5, w)
    assert row.min() >= 0
    fixed = len(head) + prefix + len(PROMPT) + len(EOS)
    assert len(row) <= length
    if cut is None:
        assert len(row) == fixed + sum(turns)
    elif cut == "question_cut":
        assert len(row) == length
    else:
        kept = len(row) - fixed
        assert kept in _suffix_sums(turns)
        longer = min(s for s in _suffix_sums(turns) if s > kept)
        assert fixed + longer > length


def _suffix_sums(turns: list[int]) -> list[int]:
    return [sum(turns[i:]) for i in range(len(turns))]


@pytest.mark.parametrize(
    ("given_length", "expected"), [(777, 777), (int(1e30), 2048), (None, 2048)]
)
def test_the_saved_window(given_length: int | None, expected: int) -> None:
    assert saved_length({"model_max_length": given_length}) == expected
