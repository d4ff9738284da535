"""``docs/data.md`` says what the code does: its examples are read, its lists are the code's."""

import json
import re

import pytest

from pipeline.conversation import ROLES_BY_NAME, Role
from pipeline.prepare.files.elements import TURN_KEYS
from pipeline.prepare.files.file_kind import NO_DATA
from pipeline.prepare.read.forms import FORMS, UNREAD_FORMS
from pipeline.prepare.read.ids import ID_KEYS
from pipeline.prepare.read.records import (
    MEDIA_KEYS,
    NAME_KEYS,
    SYSTEM_KEYS,
    TEXT_KEYS,
    THINKING_KEYS,
    RecordCounts,
    parse_record,
)
from pipeline.prepare.read.remedies import REMEDIES
from pipeline.prepare.read.tool_calls import CALL_KEYS
from pipeline.prepare.read.values import RejectedError
from pipeline.store.summary import MEANINGS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def table(head: str) -> list[list[str]]:
    """Return the cells of the table whose first line begins with some text."""
    lines = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


FORM_ROWS = table("form | example")


@pytest.mark.parametrize("row", FORM_ROWS, ids=[row[0] for row in FORM_ROWS])
def test_each_example_is_read_as_the_page_says(row: list[str]) -> None:
    name, example, expected = row
    counts = RecordCounts()
    found = parse_record(json.loads(example.strip("`")), ROLES_BY_NAME, counts)
    turns = [f"{turn.role.lower()}: {turn.text}".replace("\n", "⏎") for turn in found.turns]
    assert "; ".join(turns) == expected
    is_list = name.strip("`") in TURN_KEYS or name in ("a list of turns", "JSON in a string")
    assert counts.forms == ({} if is_list else {name: 1})


def test_every_form_has_an_example_in_the_order_of_the_code() -> None:
    names = [row[0].strip("`") for row in FORM_ROWS]
    assert names == [*TURN_KEYS, "a list of turns", "JSON in a string", *(f.name for f in FORMS)]


def test_every_form_that_is_not_read_is_named() -> None:
    rows = table("form | known by")
    assert [(name, tuple(quoted(keys))) for name, keys in rows[:-1]] == list(UNREAD_FORMS)
    for name, keys in rows:
        record = dict.fromkeys(quoted(keys), True)
        with pytest.raises(RejectedError) as caught:
            parse_record(record, ROLES_BY_NAME, RecordCounts())
        assert caught.value.detail.startswith(name)


def test_the_speakers_are_those_of_the_code() -> None:
    named = {
        name: Role(role.capitalize()) for role, names in table("role") for name in quoted(names)
    }
    assert named == ROLES_BY_NAME


def test_the_keys_are_those_of_the_code() -> None:
    named = [key for keys, _, _ in table("key") for key in quoted(keys)]
    assert named == [
        *(*TURN_KEYS, *ID_KEYS, *SYSTEM_KEYS, "tools", *MEDIA_KEYS),
        *(*NAME_KEYS, *TEXT_KEYS, "weight", "train", *CALL_KEYS, *THINKING_KEYS),
    ]


def test_the_files_without_records_are_those_of_the_code() -> None:
    assert table("what it is") == [[found.what, found.do] for found in NO_DATA]


def test_the_advice_is_that_of_the_code() -> None:
    assert {quoted(row[0])[0]: row[1] for row in table("commonest reason")} == REMEDIES


def test_the_reasons_are_those_of_the_summary() -> None:
    assert sorted(quoted(row[0])[0] for row in table("reason")) == sorted(MEANINGS)
