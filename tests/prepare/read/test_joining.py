"""Parts to conversations: the rule, case by case."""

import itertools

import pytest

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.read.joining import join_parts, joins

TURNS = [Turn(Role.HUMAN if i % 2 == 0 else Role.ASSISTANT, f"t{i}") for i in range(10)]


def part(record_id: str, start: int, end: int) -> Conversation:
    return Conversation(record_id, TURNS[start:end])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # adjacent, overlapping, contained
        ([("QWJhYvA_0", 0, 4), ("QWJhYvA_4", 4, 6)], [("QWJhYvA_0", 0, 6)]),
        ([("QWJhYvA_0", 0, 4), ("QWJhYvA_2", 2, 7)], [("QWJhYvA_0", 0, 7)]),
        ([("QWJhYvA_0", 0, 6), ("QWJhYvA_2", 2, 4), ("QWJhYvA_6", 6, 8)], [("QWJhYvA_0", 0, 8)]),
        # the first part need not begin the conversation
        ([("QWJhYvA_2", 2, 4), ("QWJhYvA_4", 4, 6)], [("QWJhYvA_2", 2, 6)]),
        # a gap, the same start, an earlier start: each of its own
        ([("QWJhYvA_0", 0, 4), ("QWJhYvA_5", 5, 6)], [("QWJhYvA_0", 0, 4), ("QWJhYvA_5", 5, 6)]),
        ([("QWJhYvA_0", 0, 4), ("QWJhYvA_0", 0, 4)], [("QWJhYvA_0", 0, 4), ("QWJhYvA_0", 0, 4)]),
        ([("QWJhYvA_4", 4, 6), ("QWJhYvA_0", 0, 4)], [("QWJhYvA_4", 4, 6), ("QWJhYvA_0", 0, 4)]),
        # another base between, or no index at all
        (
            [("QWJhYvA_0", 0, 4), ("b234567_0", 0, 1), ("QWJhYvA_4", 4, 6)],
            [("QWJhYvA_0", 0, 4), ("b234567_0", 0, 1), ("QWJhYvA_4", 4, 6)],
        ),
        ([("a", 0, 4), ("a", 4, 6)], [("a", 0, 4), ("a", 4, 6)]),
        ([("a", 0, 4), ("QWJhYvA_4", 4, 6)], [("a", 0, 4), ("QWJhYvA_4", 4, 6)]),
        # turns that disagree: what a_2 holds is not what a_0 has at 2
        ([("QWJhYvA_0", 0, 4), ("QWJhYvA_2", 3, 7)], [("QWJhYvA_0", 0, 4), ("QWJhYvA_2", 3, 7)]),
        # the base may have underscores itself
        ([("QWJhY_1_0", 0, 2), ("QWJhY_1_2", 2, 4)], [("QWJhY_1_0", 0, 4)]),
        # a base of another form: only where they share a turn
        (
            [("identity_0", 0, 2), ("identity_2", 2, 4)],
            [("identity_0", 0, 2), ("identity_2", 2, 4)],
        ),
        ([("identity_0", 0, 2), ("identity_1", 1, 4)], [("identity_0", 0, 4)]),
        ([("abcdefg_0", 0, 2), ("abcdefg_2", 2, 4)], [("abcdefg_0", 0, 2), ("abcdefg_2", 2, 4)]),
        ([("abc-_f9_0", 0, 2), ("abc-_f9_2", 2, 4)], [("abc-_f9_0", 0, 4)]),
        ([("QWJhYv_0", 0, 2), ("QWJhYv_2", 2, 4)], [("QWJhYv_0", 0, 2), ("QWJhYv_2", 2, 4)]),
        ([("QWJhYvé_0", 0, 2), ("QWJhYvé_2", 2, 4)], [("QWJhYvé_0", 0, 2), ("QWJhYvé_2", 2, 4)]),
    ],
)
def test_the_rule(parts: list[tuple[str, int, int]], expected: list[tuple[str, int, int]]) -> None:
    joined = list(join_parts(part(*p) for p in parts))
    assert joined == [part(*p) for p in expected]


def test_the_records_themselves_are_not_changed() -> None:
    first = part("QWJhYvA_0", 0, 2)
    list(join_parts([first, part("QWJhYvA_2", 2, 4)]))
    assert first == part("QWJhYvA_0", 0, 2)


def test_a_joined_conversation_has_its_first_parts_tools_and_all_that_is_not_trained() -> None:
    first, second = part("QWJhYvA_2", 2, 6), part("QWJhYvA_5", 5, 9)
    first.tools, second.tools = "[1]", "[2]"
    first.untrained, second.untrained = frozenset({1}), frozenset({0, 2})
    (whole,) = join_parts([first, second])
    assert isinstance(whole, Conversation)
    assert whole.turns == TURNS[2:9]
    assert whole.tools == "[1]"
    assert whole.untrained == {1, 5}  # turn 5 of the whole is held by both: as the first has it


def test_hand_made_ids_are_not_glued() -> None:
    """Of chats named conv_N with some left out, none goes on with another."""
    records = [Conversation(f"conv_{i}", TURNS[:2]) for i in range(0, 100, 2)]
    assert not any(joins(a, b) for a, b in itertools.pairwise(records))
