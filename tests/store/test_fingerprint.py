"""Fingerprints: of content in its order, and of nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import InputError
from pipeline.store.fingerprint import ContentHash, framed, key_of, sha256_of_file

ONE = Conversation("a", [Turn(Role.HUMAN, "x"), Turn(Role.ASSISTANT, "y")])


def digest(*items: Conversation | tuple[str, str]) -> str:
    content = ContentHash()
    for item in items:
        if isinstance(item, Conversation):
            content.accepted(item)
        else:
            content.rejected(*item)
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


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_no_two_sequences_of_texts_look_alike(texts: list[str]) -> None:
    joined = ["".join(texts)]
    assert (framed(texts) == framed(joined)) is (texts == joined)


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 2, "b": 1})
    assert len(key_of("x")) == 24


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file cannot be read"):
        sha256_of_file(tmp_path)
