"""Fingerprints: of content in its order, and of nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import InputError
from pipeline.store.fingerprint import (
    ContentHash,
    _framed,
    accepted_frame,
    key_of,
    rejected_frame,
    sha256_of_file,
    turns_digest,
)

ONE = Conversation("a", [Turn(Role.HUMAN, "x"), Turn(Role.ASSISTANT, "y")])


def digest(*items: Conversation | tuple[str, str]) -> str:
    content = ContentHash()
    for item in items:
        if isinstance(item, Conversation):
            content.records(accepted_frame(item))
            content.conversation(turns_digest(item.turns))
        else:
            content.records(rejected_frame(*item))
    return content.hexdigest()


def test_whatever_is_content_changes_it() -> None:
    others = [
        Conversation("b", ONE.turns),
        Conversation("a", [Turn(Role.HUMAN, "xy"), Turn(Role.ASSISTANT, "")]),
        Conversation("a", [Turn(Role.HUMAN, "x"), Turn(Role.TOOL, "y")]),
    ]
    digests = [
        digest(ONE),
        *map(digest, others),
        digest(ONE, ONE),
        digest(("r", "x")),
        digest(("r", "y")),
        digest(("q", "x")),
        digest(ONE, ("r", "x")),
        digest(("r", "x"), ONE),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(ONE) == digest(Conversation("a", list(ONE.turns)))


def test_records_cut_elsewhere_change_it_though_they_join_to_the_same() -> None:
    turns = [*ONE.turns, *ONE.turns]
    digests = set()
    for sizes in ((4,), (1, 3), (2, 2), (3, 1), (2, 3)):  # the last two overlap by a turn
        content = ContentHash()
        for i, size in enumerate(sizes):
            content.records(accepted_frame(Conversation(f"a_{i}", turns[:size])))
        content.conversation(turns_digest(turns))
        digests.add(content.hexdigest())
    assert len(digests) == 5


def test_turns_are_the_same_with_the_same_roles_and_texts() -> None:
    h, a = Role.HUMAN, Role.ASSISTANT
    different = [
        [Turn(h, "a"), Turn(a, "b")],
        [Turn(a, "a"), Turn(h, "b")],
        [Turn(h, "ab"), Turn(a, "")],
        [Turn(h, ""), Turn(a, "ab")],
        [Turn(h, "a")],
        [Turn(h, "a"), Turn(a, "b"), Turn(h, "")],
        [],
    ]
    assert len({turns_digest(turns) for turns in different}) == len(different)
    assert turns_digest(different[0]) == turns_digest([Turn(h, "a"), Turn(a, "b")])
    assert len(turns_digest([])) == 16


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)


@given(TEXTS)
def test_no_two_sequences_of_texts_look_alike(texts: list[str]) -> None:
    joined = ["".join(texts)]
    assert (_framed(texts) == _framed(joined)) is (texts == joined)
    one, other = ([Turn(Role.HUMAN, text) for text in given] for given in (texts, joined))
    assert (turns_digest(one) == turns_digest(other)) is (texts == joined)


@given(TEXTS, TEXTS)
def test_no_two_lists_of_texts_look_alike(texts: list[str], others: list[str]) -> None:
    assert (_framed(texts) == _framed(others)) is (texts == others)


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 2, "b": 1})
    assert len(key_of("x")) == 24


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file cannot be read"):
        sha256_of_file(tmp_path)
