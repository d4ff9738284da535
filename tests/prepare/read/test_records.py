"""Records to conversations: what is accepted, and the reason for what is not."""

from typing import Any

import pytest

from pipeline.conversation import Role, Turn
from pipeline.prepare.found import NumberText
from pipeline.prepare.read.records import RejectedError, parse_record, roles_with

H, A, S, T = Role.HUMAN, Role.ASSISTANT, Role.SYSTEM, Role.TOOL


def parse(value: Any, **roles: str) -> Any:
    return parse_record(value, "file:0", roles_with(roles))


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": name, "value": text} for name, text in pairs]


@pytest.mark.parametrize(
    ("name", "role"),
    [(n, H) for n in ("human", "USER", "Prompter")]
    + [(n, A) for n in ("gpt", "ChatGPT", "bing", "bard", "assistant", "model", "function_call")]
    + [("system", S)]
    + [(n, T) for n in ("tool", "function", "OBSERVATION")],
)
def test_roles_in_any_case(name: str, role: Role) -> None:
    assert parse({"conversations": turns((name, "x"))}).turns == [Turn(role, "x")]


def test_a_role_can_be_added() -> None:
    value = {"conversations": turns(("Narrator", "x"))}
    assert parse(value, narrator="assistant").turns == [Turn(A, "x")]
    with pytest.raises(RejectedError, match="unknown_role"):
        parse(value)


def test_messages_with_parts() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "extra": 1}]
    value = {"messages": [{"role": "user", "content": content}], "conversations": None}
    assert parse(value).turns == [Turn(H, "ab")]


@pytest.mark.parametrize(
    ("system", "expected"),
    [("be nice", [Turn(S, "be nice")]), ("", []), (None, []), (" ", [Turn(S, " ")])],
)
def test_a_system_key_is_a_first_turn(system: Any, expected: list[Turn]) -> None:
    value = {"system": system, "conversations": turns(("system", "s"), ("human", "x"))}
    assert parse(value).turns == [*expected, Turn(S, "s"), Turn(H, "x")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("abc_3", "abc_3"),
        (None, "file:0"),
        (NumberText("123456789012345678901234567890"), "123456789012345678901234567890"),
        (7, "7"),
        (1.5, "1.5"),
        ("a\ud800", "a\ufffd"),
    ],
)
def test_ids(given: Any, expected: str) -> None:
    assert parse({"id": given, "conversations": turns(("human", "x"))}).id == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a\r\nb\r\n", "a\nb\n"),
        ("a\rb", "a\rb"),
        ("\ud83d", "\ufffd"),
        (" \x00\t\u200b  ", " \x00\t\u200b  "),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
    ],
)
def test_only_crlf_and_lone_surrogates_are_touched(given: str, expected: str) -> None:
    assert parse({"conversations": turns(("human", given))}).turns == [Turn(H, expected)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "wrong_shape"),
        ([], "wrong_shape"),
        ("x", "wrong_shape"),
        (NumberText("5"), "wrong_shape"),
        ({}, "wrong_shape"),
        ({"conversations": "x"}, "wrong_shape"),
        ({"conversations": {}}, "wrong_shape"),
        ({"conversations": []}, "no_turns"),
        ({"messages": []}, "no_turns"),
        ({"system": "x", "conversations": []}, "no_turns"),
        ({"conversations": ["x"]}, "wrong_shape"),
        ({"conversations": [{"from": "human"}]}, "wrong_shape"),
        ({"conversations": [{"value": "x"}]}, "wrong_shape"),
        ({"conversations": turns(("human", None))}, "wrong_shape"),
        ({"conversations": turns(("human", NumberText("4")))}, "wrong_shape"),
        ({"conversations": turns(("human", ["x"]))}, "wrong_shape"),
        ({"conversations": turns(("human", "x"), ("alien", "y"))}, "unknown_role"),
        ({"messages": [{"role": "user", "content": None}]}, "wrong_shape"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "wrong_shape"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "wrong_shape"),
        ({"system": 5, "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"id": [], "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"id": {}, "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"id": True, "conversations": turns(("human", "x"))}, "wrong_shape"),
    ],
)
def test_what_is_no_conversation_has_a_reason(value: Any, reason: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(value)
    assert caught.value.reason == reason
