"""Conversations to parts: cut by content, nothing lost, and the same after an insertion."""

import itertools
import pickle
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare import cutting
from pipeline.prepare.cutting import Part, cut_parts
from pipeline.store.fingerprint import turns_digest

TURN_SIZE = cutting._TURN_SIZE


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 2,000 to 40,000 characters, 8,000 on average."""
    monkeypatch.setattr(cutting, "MIN_SIZE", 2_000)
    monkeypatch.setattr(cutting, "MEAN_SIZE", 8_000)
    monkeypatch.setattr(cutting, "MAX_SIZE", 40_000)


def conversation(name: str, *texts: str) -> Conversation:
    roles = (Role.HUMAN, Role.ASSISTANT)
    return Conversation(name, [Turn(roles[i % 2], text) for i, text in enumerate(texts)])


def generated(count: int, seed: int) -> list[Conversation]:
    draw = random.Random(seed)
    return [
        conversation(
            f"c{seed}-{i}",
            *("x" * draw.randint(1, 300) + str(draw.random()) for _ in range(draw.randint(2, 6))),
        )
        for i in range(count)
    ]


def cut(conversations: Sequence[Conversation]) -> list[Part]:
    return list(cut_parts([(c, turns_digest(c.turns)) for c in conversations]))


def size_of(conversation: Conversation) -> int:
    return sum(len(turn.text) + TURN_SIZE for turn in conversation.turns)


@pytest.mark.usefixtures("_small")
def test_parts_are_all_conversations_in_order_with_their_digests() -> None:
    conversations = generated(600, seed=1)
    parts = cut(conversations)
    assert [c for part in parts for c in part.conversations] == conversations
    digests = [digest for part in parts for digest in part.digests]
    assert digests == [turns_digest(c.turns) for c in conversations]
    for part in parts:
        assert part.size == sum(map(size_of, part.conversations))
    assert all(2_000 <= part.size <= 40_000 for part in parts[:-1])
    mean = sum(part.size for part in parts) / len(parts)
    assert 5_000 < mean < 12_000


@pytest.mark.usefixtures("_small")
def test_the_same_conversations_are_cut_the_same() -> None:
    once, again = (cut(generated(300, seed=2)) for _ in range(2))
    assert once == again
    assert [part.key("x") for part in once] == [part.key("x") for part in again]
    assert len({part.key("x") for part in once}) == len(once) > 10


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("inserted", [1, 10, 100])
def test_an_insertion_changes_few_parts(share: float, inserted: int) -> None:
    old, new = generated(1_000, seed=3), generated(inserted, seed=4)
    at = int(share * len(old))
    before = [part.key() for part in cut(old)]
    after = [part.key() for part in cut([*old[:at], *new, *old[at:]])]
    # The parts of what is new, and a few around it until a cut is one of both.
    lost = len(set(before) - set(after))
    assert lost <= 4
    assert len(set(after) - set(before)) <= lost + 2 + sum(map(size_of, new)) // 4_000
    # Those before and behind are the same, and in order.
    kept = [key for key in after if key in set(before)]
    assert kept == [key for key in before if key in set(after)]


@pytest.mark.usefixtures("_small")
def test_a_deletion_or_a_change_of_one_conversation_changes_few_parts() -> None:
    old = generated(1_000, seed=5)
    before = {part.key() for part in cut(old)}
    changed = [*old[:500], conversation("other", "q", "a"), *old[501:]]
    for new in (old[:500] + old[501:], changed, [*old[:400], *old[430:]]):
        assert len(before - {part.key() for part in cut(new)}) <= 5


@pytest.mark.usefixtures("_small")
def test_a_part_is_too_large_only_if_it_is_a_single_conversation() -> None:
    conversations = generated(300, seed=6)
    for at, size in ((0, 50_000), (100, 39_000), (101, 41_000), (200, 400_000), (299, 60_000)):
        conversations.insert(at, conversation(f"long{at}", "q" * size, "a"))
    parts = cut(conversations)
    assert [c for part in parts for c in part.conversations] == conversations
    large = [part for part in parts if part.size > cutting.MAX_SIZE]
    assert len(large) == 4
    assert all(len(part.conversations) == 1 for part in large)


def test_without_a_cut_parts_end_at_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MIN_SIZE", 100)
    monkeypatch.setattr(cutting, "MEAN_SIZE", 1 << 60)
    monkeypatch.setattr(cutting, "MAX_SIZE", 1_000)
    conversations = generated(200, seed=7)
    parts = cut(conversations)
    assert [c for part in parts for c in part.conversations] == conversations
    assert all(part.size <= 1_000 or len(part.conversations) == 1 for part in parts)
    for part, following in itertools.pairwise(parts):
        assert part.size + size_of(following.conversations[0]) > 1_000


@given(st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=4), max_size=40))
@settings(deadline=None, max_examples=100)
def test_any_conversations_come_through(sizes: list[list[int]]) -> None:
    conversations = [
        conversation(str(i), *(chr(97 + n % 26) * n for n in lengths))
        for i, lengths in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "MIN_SIZE", 500)
        patch.setattr(cutting, "MEAN_SIZE", 1_000)
        patch.setattr(cutting, "MAX_SIZE", 2_000)
        parts = cut(conversations)
    assert [c for part in parts for c in part.conversations] == conversations
    assert all(part.conversations for part in parts)
    assert all(part.size <= 2_000 or len(part.conversations) == 1 for part in parts)


def test_no_conversations_are_no_parts() -> None:
    assert cut([]) == []


def test_a_part_survives_pickling() -> None:
    conversations = [
        conversation("a_0", "hi", "", "\U0001f468\u200d\U0001f469\n\t", "\x00"),
        Conversation("ü", [Turn(role, f"text of {role}") for role in Role]),
        Conversation("", []),
    ]
    (part,) = cut([*conversations, *generated(20, seed=8)])
    copy = pickle.loads(pickle.dumps(part))
    assert isinstance(copy, Part)
    assert copy == part
    assert copy.key(1, "x") == part.key(1, "x")
    for old, new in zip(part.conversations, copy.conversations, strict=True):
        assert all(isinstance(turn, Turn) and isinstance(turn.role, Role) for turn in new.turns)
        assert new.start == old.start


def test_a_parts_key_is_of_ids_turns_order_and_settings() -> None:
    base = [conversation("a", "q", "x"), conversation("b", "q", "y")]
    variants = [
        base,
        base[::-1],
        base[:1],
        [conversation("c", "q", "x"), base[1]],
        [conversation("a", "q", "z"), base[1]],
        [conversation("a", "qx", ""), base[1]],
        [Conversation("a", [Turn(Role.SYSTEM, "q"), Turn(Role.ASSISTANT, "x")]), base[1]],
    ]
    keys = [cut(variant)[0].key("settings") for variant in variants]
    keys.append(cut(base)[0].key("others"))
    assert len(set(keys)) == len(keys)
    assert cut(list(base))[0].key("settings") == keys[0]
