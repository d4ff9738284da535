"""Parts to conversations: the rule, case by case."""

import pytest

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.read.joining import join_parts

TURNS = [Turn(Role.HUMAN if i % 2 == 0 else Role.ASSISTANT, f"t{i}") for i in range(10)]


def part(record_id: str, start: int, end: int) -> Conversation:
    return Conversation(record_id, TURNS[start:end])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # adjacent, overlapping, contained
        ([("a_0", 0, 4), ("a_4", 4, 6)], [("a_0", 0, 6)]),
        ([("a_0", 0, 4), ("a_2", 2, 7)], [("a_0", 0, 7)]),
        ([("a_0", 0, 6), ("a_2", 2, 4), ("a_6", 6, 8)], [("a_0", 0, 8)]),
        # the first part need not begin the conversation
        ([("a_2", 2, 4), ("a_4", 4, 6)], [("a_2", 2, 6)]),
        # a gap, the same start, an earlier start: each of its own
        ([("a_0", 0, 4), ("a_5", 5, 6)], [("a_0", 0, 4), ("a_5", 5, 6)]),
        ([("a_0", 0, 4), ("a_0", 0, 4)], [("a_0", 0, 4), ("a_0", 0, 4)]),
        ([("a_4", 4, 6), ("a_0", 0, 4)], [("a_4", 4, 6), ("a_0", 0, 4)]),
        # another base between, or no index at all
        (
            [("a_0", 0, 4), ("b_0", 0, 1), ("a_4", 4, 6)],
            [("a_0", 0, 4), ("b_0", 0, 1), ("a_4", 4, 6)],
        ),
        ([("a", 0, 4), ("a", 4, 6)], [("a", 0, 4), ("a", 4, 6)]),
        ([("a", 0, 4), ("a_4", 4, 6)], [("a", 0, 4), ("a_4", 4, 6)]),
        # turns that disagree: what a_2 holds is not what a_0 has at 2
        ([("a_0", 0, 4), ("a_2", 3, 7)], [("a_0", 0, 4), ("a_2", 3, 7)]),
        # the base may have underscores itself
        ([("a_1_0", 0, 2), ("a_1_2", 2, 4)], [("a_1_0", 0, 4)]),
    ],
)
def test_the_rule(parts: list[tuple[str, int, int]], expected: list[tuple[str, int, int]]) -> None:
    joined = list(join_parts(part(*p) for p in parts))
    assert joined == [part(*p) for p in expected]


def test_the_records_themselves_are_not_changed() -> None:
    first = part("a_0", 0, 2)
    list(join_parts([first, part("a_2", 2, 4)]))
    assert first == part("a_0", 0, 2)
