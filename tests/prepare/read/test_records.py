"""Records to conversations: what is accepted and counted, and the reason for what is not."""

import json
from typing import Any

import pytest

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.files.elements import DECODER, NumberText
from pipeline.prepare.read.records import RecordCounts, parse_record, roles_with
from pipeline.prepare.read.values import RejectedError

H, A, S, T = Role.HUMAN, Role.ASSISTANT, Role.SYSTEM, Role.TOOL


def parse(value: Any, counts: RecordCounts | None = None, **roles: str) -> Conversation:
    found = counts if counts is not None else RecordCounts()
    return parse_record(value, roles_with(roles), found)


def unused(value: Any) -> dict[str, dict[str, int]]:
    counts = RecordCounts()
    parse(value, counts)
    return counts.unused_keys()


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": name, "value": text} for name, text in pairs]


CHAT = turns(("human", "q"), ("gpt", "a"))


@pytest.mark.parametrize(
    ("name", "role"),
    [(n, H) for n in ("human", "USER", "Prompter", "human ", "\tuser\n")]
    + [(n, A) for n in ("gpt", "ChatGPT", "bing", "bard", "assistant", "model", "function_call")]
    + [(n, A) for n in ("AI", "bot", "tool_call")]
    + [(n, S) for n in ("system", "developer")]
    + [(n, T) for n in ("tool", "function", "OBSERVATION", "tool_response")],
)
def test_roles_in_any_case_outer_blanks_off(name: str, role: Role) -> None:
    assert parse({"conversations": turns((name, "x"))}).turns == [Turn(role, "x")]


def test_a_role_can_be_added() -> None:
    value = {"conversations": turns(("Narrator", "x"))}
    assert parse(value, narrator="assistant").turns == [Turn(A, "x")]
    with pytest.raises(RejectedError, match="unknown_role"):
        parse(value)


@pytest.mark.parametrize(
    "value",
    [
        {"conversations": CHAT},
        {"conversation": CHAT},
        {"messages": CHAT},
        {"conversations": None, "conversation": [], "messages": CHAT},
        {"conversations": json.dumps(CHAT)},
        {"conversations": "[]", "messages": CHAT},
        {"conversations": "null", "messages": CHAT},
        CHAT,
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"from": "user", "content": "q"}, {"role": "assistant", "value": "a"}]},
        {"messages": [{"role": "user", "text": "q"}, {"role": "bot", "text": "a"}]},
        {
            "messages": [
                {"from": None, "role": "user", "value": None, "content": "q"},
                {"role": "ai", "content": None, "text": "a"},
            ]
        },
        {"messages": [{"role": "user", "content": ["q"]}, {"role": "ai", "content": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
        {"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a", "history": None},
        {"question": "q", "answer": "a"},
        {"question": "q", "response": "a"},
        {"query": "q", "response": "a"},
        {"input": "q", "output": "a"},
        {"conversations": [], "input": "q", "output": "a"},
    ],
)
def test_every_form_of_one_question_and_its_answer(value: Any) -> None:
    assert parse(value).turns == [Turn(H, "q"), Turn(A, "a")]


def test_other_forms_are_counted_by_name() -> None:
    counts = RecordCounts()
    for value in (
        {"conversations": CHAT},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"question": "q", "answer": "a"},
    ):
        parse(value, counts)
    assert counts.forms == {
        "{instruction, input?, output, history?}": 2,
        "{question, answer}": 1,
    }


def test_an_instruction_with_input_history_and_system() -> None:
    value = {
        "instruction": "Add.",
        "input": "2 + 2",
        "output": "4",
        "history": [["Hi", "Hello."], ["a", "b"]],
        "system": "Be brief.",
    }
    assert parse(value).turns == [
        Turn(S, "Be brief."),
        Turn(H, "Hi"),
        Turn(A, "Hello."),
        Turn(H, "a"),
        Turn(A, "b"),
        Turn(H, "Add.\n\n2 + 2"),
        Turn(A, "4"),
    ]


def test_messages_with_parts() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "extra": 1}, "c"]
    value = {"messages": [{"role": "user", "content": content}], "conversations": None}
    assert parse(value).turns == [Turn(H, "abc")]


def chatgpt(*nodes: tuple[str, str | None, Any], current: str) -> dict[str, Any]:
    mapping = {
        name: {"id": name, "message": message, "parent": parent, "children": []}
        for name, parent, message in nodes
    }
    return {"title": "t", "mapping": mapping, "current_node": current, "conversation_id": "c1"}


def said(role: str, *parts: Any, kind: str = "text", **more: Any) -> dict[str, Any]:
    return {
        "author": {"role": role},
        "content": {"content_type": kind, "parts": list(parts)},
        "weight": 1.0,
        **more,
    }


def test_chatgpts_own_export_gives_the_path_to_the_current_node() -> None:
    value = chatgpt(
        ("root", None, None),
        ("sys", "root", said("system", "")),
        ("q", "sys", said("user", "q")),
        ("a1", "q", said("assistant", "first try")),
        ("a2", "q", said("assistant", "a", "b", status="finished_successfully")),
        ("think", "a2", {"author": {"role": "assistant"}, "content": {"content_type": "thoughts"}}),
        ("hidden", "think", said("assistant", "x", weight=0.0)),
        current="hidden",
    )
    counts = RecordCounts()
    found = parse(value, counts)
    assert found == Conversation(
        "c1", [Turn(H, "q"), Turn(A, "ab"), Turn(A, "x")], untrained=frozenset({2})
    )
    assert counts.forms == {"ChatGPT's own export": 1}
    assert counts.reasons == {"thinking": 1}
    assert counts.unused_keys() == {"records": {"title": 1}, "turns": {}}


@pytest.mark.parametrize(
    ("nodes", "current", "reason"),
    [
        ([("a", None, said("user", "q"))], "b", "wrong_shape"),
        ([("a", "b", said("user", "q")), ("b", "a", None)], "a", "wrong_shape"),
        ([("a", None, said("user", "q", kind="tether_quote"))], "a", "wrong_shape"),
        (
            [("a", None, said("user", {"content_type": "x"}, kind="multimodal_text"))],
            "a",
            "not_text",
        ),
        ([("a", None, {"author": None, "content": {}})], "a", "wrong_shape"),
        ([("a", None, said("system", " "))], "a", "no_turns"),
    ],
)
def test_an_export_without_a_path_or_with_more_than_text_is_rejected(
    nodes: list[Any], current: str, reason: str
) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(chatgpt(*nodes, current=current))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ({"system": "be nice"}, ["be nice"]),
        ({"system": ""}, []),
        ({"system": None}, []),
        ({"system": " \u200b\ufeff\u2028"}, []),
        ({"system_prompt": "be nice"}, ["be nice"]),
        ({"system_message": ["be ", {"type": "text", "text": "nice"}]}, ["be nice"]),
        ({"system": " ", "system_prompt": "first", "system_message": "second"}, ["first"]),
    ],
)
def test_a_system_text_beside_the_turns_is_a_first_turn(
    system: dict[str, Any], expected: list[str]
) -> None:
    value = {**system, "conversations": turns(("system", "s"), ("human", "x"))}
    assert parse(value).turns == [*(Turn(S, t) for t in expected), Turn(S, "s"), Turn(H, "x")]


def test_a_blank_system_turn_is_absent_and_any_other_blank_turn_is_kept() -> None:
    value = {"conversations": turns(("system", "\n"), ("human", " "), ("system", ""), ("gpt", ""))}
    assert parse(value).turns == [Turn(H, " "), Turn(A, "")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"id": "abc_3"}, "abc_3"),
        ({"id": NumberText("123456789012345678901234567890")}, "123456789012345678901234567890"),
        ({"id": 7}, "7"),
        ({"id": 1.5}, "1.5"),
        ({"id": 0}, "0"),
        ({"id": "a\ud800"}, "a\ufffd"),
        ({"conversation_id": "c"}, "c"),
        ({"id": None, "conversation_id": 5}, "5"),
        ({"id": "i", "conversation_id": "c"}, "i"),
        # printf '[["human","x"]]' | sha256sum
        ({}, "249f1de7d17a9515"),
        ({"id": None}, "249f1de7d17a9515"),
        ({"id": ""}, "249f1de7d17a9515"),
        ({"id": float("nan")}, "249f1de7d17a9515"),
    ],
)
def test_ids(given: dict[str, Any], expected: str) -> None:
    assert parse({**given, "conversations": turns(("human", "x"))}).id == expected


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
    for value in (
        {"conversations": turns(("human", given))},
        {"messages": [{"role": "user", "content": [given], "weight": 1}]},
    ):
        assert parse(value).turns == [Turn(H, expected)]


# --- keys that mean something ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "is_trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": NumberText("0")}, False),
        ({"weight": NumberText("-0.0e5")}, False),
        ({"train": False}, False),
        ({"weight": 1}, True),
        ({"weight": "0"}, True),
        ({"weight": False}, True),
        ({"weight": None, "train": None}, True),
        ({"train": True}, True),
        ({"train": 0}, True),
        ({"train": "false"}, True),
    ],
)
def test_an_assistants_turn_of_no_weight_is_not_trained(
    keys: dict[str, Any], is_trained: bool
) -> None:
    value = {"conversations": [{"from": "human", "value": "q", **keys}, {**CHAT[1], **keys}]}
    assert parse(value).untrained == (frozenset() if is_trained else {1})


F_CALL = '{"name": "f", "arguments": {"x": 1.5, "s": "é"}}'
CALL = {"function": {"name": "f", "arguments": '{"x": 1.50, "s": "\\u00e9"}'}, "id": "1"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": None, "tool_calls": [CALL]}, F_CALL),
        (
            {"content": "So:", "tool_calls": [CALL, {"name": "g", "arguments": {"y": [True]}}]},
            f'So:\n{F_CALL}\n{{"name": "g", "arguments": {{"y": [true]}}}}',
        ),
        ({"tool_calls": [{"name": "g", "arguments": "{x"}]}, '{"name": "g", "arguments": "{x"}'),
        ({"function_call": {"name": "g", "arguments": "7"}}, '{"name": "g", "arguments": 7}'),
        ({"content": "a", "tool_calls": []}, "a"),
        ({"content": "a", "tool_calls": None, "function_call": None}, "a"),
        ({"content": "", "tool_calls": [CALL | {"function": None, "name": "h"}]},
         '{"name": "h", "arguments": null}'),
    ],
)  # fmt: skip
def test_tool_calls_are_lines_after_the_text(message: dict[str, Any], expected: str) -> None:
    value = DECODER.decode(json.dumps({"messages": [{"role": "assistant", **message}]}))
    assert parse(value).turns == [Turn(A, expected)]


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (None, ""),
        ([], ""),
        ("[]", ""),
        ([{"name": "é", "n": 1.50}], '[{"name": "é", "n": 1.5}]'),
        ('[{"name": "f"}]', '[{"name": "f"}]'),
    ],
)
def test_tools_are_one_line_of_json_and_no_turn(tools: Any, expected: str) -> None:
    value = DECODER.decode(json.dumps({"tools": tools, "conversations": CHAT}))
    found = parse(value)
    assert (found.tools, len(found.turns)) == (expected, 2)
    assert found.id == parse({"conversations": CHAT}).id


def test_thinking_is_counted_and_not_trained() -> None:
    counts = RecordCounts()
    messages = [{"role": "assistant", "content": "a", "reasoning_content": "hm", "thinking": ""}]
    assert parse({"messages": messages}, counts).turns == [Turn(A, "a")]
    assert counts.reasons == {"reasoning_content": 1}
    assert counts.unused_keys() == {"records": {}, "turns": {}}


@pytest.mark.parametrize(
    ("value", "records", "in_turns"),
    [
        ({"id": "x", "conversations": CHAT}, {}, {}),
        ({"id": 1, "conversations": CHAT, "lang": "en", "score": None}, {"lang": 1}, {}),
        ({"id": 1, "conversation_id": 2, "messages": CHAT}, {"conversation_id": 1}, {}),
        ({"conversations": CHAT, "messages": CHAT}, {"messages": 1}, {}),
        ({"system": "x", "system_prompt": "y", "messages": CHAT}, {"system_prompt": 1}, {}),
        ({"question": "q", "answer": "a", "source": "s"}, {"source": 1}, {}),
        (
            {"messages": [{"from": "human", "role": "x", "value": "q", "text": "q", "n": 1}]},
            {},
            {"role": 1, "text": 1, "n": 1},
        ),
        ({"messages": [{"role": "user", "text": "q", "tool_calls": [1]}]}, {}, {"tool_calls": 1}),
        ({"messages": [{"role": "ai", "content": "q", "weight": 0.5}]}, {}, {"weight": 1}),
        ({"messages": [{"role": "user", "content": "q", "weight": 0, "train": True}]}, {}, {}),
    ],
)  # fmt: skip
def test_keys_that_nobody_reads_are_counted(
    value: Any, records: dict[str, int], in_turns: dict[str, int]
) -> None:
    assert unused(value) == {"records": records, "turns": in_turns}


def test_nothing_is_counted_of_a_record_that_is_rejected() -> None:
    counts = RecordCounts()
    messages = [{"role": "user", "content": "q", "n": 1}, {"role": "alien", "content": "x"}]
    with pytest.raises(RejectedError):
        parse({"messages": messages, "lang": "en"}, counts)
    assert not counts


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "wrong_shape"),
        ([], "wrong_shape"),
        (["x"], "wrong_shape"),
        ([CHAT], "wrong_shape"),
        ("x", "wrong_shape"),
        (NumberText("5"), "wrong_shape"),
        ({}, "wrong_shape"),
        ({"text": "x"}, "wrong_shape"),
        ({"prompt": "x", "response": "y"}, "wrong_shape"),
        ({"prompt": "x", "completion": 5}, "wrong_shape"),
        ({"instruction": "x", "output": "y", "history": ["x"]}, "wrong_shape"),
        ({"instruction": "x", "output": "y", "input": 5}, "wrong_shape"),
        ({"conversations": "x"}, "wrong_shape"),
        ({"conversations": "[{'from': 'human', 'value': 'x'}]"}, "wrong_shape"),
        ({"conversations": "[" * 5000}, "wrong_shape"),
        ({"conversations": {}}, "wrong_shape"),
        ({"conversations": []}, "no_turns"),
        ({"messages": []}, "no_turns"),
        ({"messages": None}, "no_turns"),
        ({"system": "x", "conversations": []}, "no_turns"),
        ({"conversations": turns(("system", " "))}, "no_turns"),
        ({"system": "x", "conversations": turns(("system", " "))}, "no_turns"),
        ({"conversations": ["x"]}, "wrong_shape"),
        ({"conversations": [{"from": "human"}]}, "wrong_shape"),
        ({"conversations": [{"value": "x"}]}, "wrong_shape"),
        ({"conversations": turns(("human", None))}, "wrong_shape"),
        ({"conversations": turns(("human", NumberText("4")))}, "wrong_shape"),
        ({"conversations": turns(("human", {"x": 1}))}, "wrong_shape"),
        ({"conversations": turns(("human", "x"), ("alien", "y"))}, "unknown_role"),
        ({"messages": [{"role": "user", "content": None}]}, "wrong_shape"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "wrong_shape"),
        ({"messages": [{"role": "assistant", "tool_calls": {"name": "f"}}]}, "wrong_shape"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"arguments": "x"}]}]}, "wrong_shape"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "wrong_shape"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "not_text"),
        ({"messages": [{"role": "user", "content": "x", "images": ["a.png"]}]}, "not_text"),
        ({"conversations": CHAT, "image": "a.png"}, "not_text"),
        ({"conversations": CHAT, "audio": {"path": "x"}}, "not_text"),
        ({"question": "q", "answer": "a", "videos": ["x"]}, "not_text"),
        ({"system": 5, "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"system_message": {}, "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"tools": {"x": 1}, "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"tools": "nothing", "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"id": [], "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"id": {}, "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"id": True, "conversations": turns(("human", "x"))}, "wrong_shape"),
        ({"id": False, "conversations": turns(("human", "x"))}, "wrong_shape"),
    ],
)
def test_what_is_no_conversation_has_a_reason(value: Any, reason: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(value)
    assert caught.value.reason == reason


def test_empty_media_keys_are_absent() -> None:
    value = {"conversations": CHAT, "images": [], "image": None, "audio": "", "videos": {}}
    assert len(parse(value).turns) == 2


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "a preference pair (chosen, rejected)"),
        ({"chosen": CHAT, "rejected": CHAT}, "a preference pair (chosen, rejected)"),
        ({"prompt": "p", "completion": "c", "label": True}, "only judged (completion, label)"),
        ({"message_tree_id": "t", "prompt": {"text": "x"}}, "a tree of Open Assistant"),
        ({"message_id": "m", "text": "x", "role": "prompter"}, "an Open Assistant tree"),
        ({"prompt": "x", "response": "y"}, "keys: prompt, response; the nearest known form is "),
        ({"prompt": "x", "output": "y", "instruction": None}, "{instruction, input?, output, "),
        ({"content": "y", "role": "user"}, "{messages: [{role, content}, …]}"),
        ({"conversations": "[{'from': 'human'}]"}, "turns in a string of Python"),
    ],
)
def test_a_form_that_is_not_read_is_named_or_the_nearest_one_is(value: Any, detail: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(value)
    assert detail in caught.value.detail


def test_a_number_too_large_or_a_value_too_deep_in_tools_is_no_traceback() -> None:
    deep: Any = []
    for _ in range(3_000):
        deep = [deep]
    for tools in ([NumberText("9" * 5000)], [deep], [b"x"]):
        with pytest.raises(RejectedError):
            parse({"tools": tools, "conversations": CHAT})


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (
            {"conversation": [{"human": "q", "assistant": "a"}]},
            "turn 0 has no speaker under from or role; its keys: human, assistant",
        ),
        (
            {"messages": [{"role": "user", "message": "q"}]},
            "turn 0 has no text under value or content or text; its keys: role, message",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "turn 0 has no text under value or content or text; its keys: role, content",
        ),
        (
            {"id1": {"conversations": CHAT}, "id2": {"conversations": CHAT}},
            "no turns, but records under its keys: id1, id2; write them as a list",
        ),
        (
            {"train": [{"question": "q", "answer": "a"}], "test": []},
            "no turns, but records under its keys: train, test; write them as a list",
        ),
        (
            {"meta": {"version": 1}, "text": "x"},
            "no turns; keys: meta, text; the nearest known form is "
            "{conversations: [{from, value}, …]}",
        ),
    ],
)
def test_what_is_missing_is_told_with_the_keys_that_were_there(value: Any, detail: str) -> None:
    with pytest.raises(RejectedError) as raised:
        parse(value)
    assert raised.value.detail == detail
