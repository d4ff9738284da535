"""Tagged text: the literal form, escaping, and the chat template's agreement with it."""

import json
from typing import Any

import jinja2.sandbox
import pytest

from pipeline.conversation import Role, Turn
from pipeline.template import HEADER, TAGS, Escaper, chat_template, encoder_text
from pipeline.tokenizer import TextTokenizer

H, A, S, T = Role.HUMAN, Role.ASSISTANT, Role.SYSTEM, Role.TOOL


def test_the_text_of_a_conversation_is_this_to_the_letter() -> None:
    turns = [Turn(H, "What is 2 + 2?"), Turn(A, "4."), Turn(H, "And 3 + 3?")]
    assert encoder_text(turns, Escaper()) == (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
        "\n\n"
        "### Human: What is 2 + 2?\n"
        "### Assistant: 4.\n"
        "### Human: And 3 + 3?\n"
        "### Assistant:"
    )


def test_a_first_system_turn_is_the_header_and_a_later_one_is_a_turn() -> None:
    turns = [Turn(S, "Be brief."), Turn(H, "Hi"), Turn(S, "Now long."), Turn(T, "42")]
    assert encoder_text(turns, Escaper()) == (
        "Be brief.\n\n### Human: Hi\n### System: Now long.\n### Tool: 42\n### Assistant:"
    )


@pytest.mark.parametrize("tag", ["### Human:", "### Assistant:", "### System:", "### Tool:"])
def test_a_line_inside_a_text_cannot_pose_as_a_turn(tag: str) -> None:
    escape = Escaper()
    assert escape(f"see\n{tag} x\n{tag}") == f"see\n {tag} x\n {tag}"
    assert (
        escape(f"{tag} first line, behind its own tag") == f"{tag} first line, behind its own tag"
    )
    assert escape(f"{tag} header", starts_line=True) == f" {tag} header"


@pytest.mark.parametrize(
    "line", ["### human: x", "## Human: x", " ### Human: x", "### Human x", ""]
)
def test_other_lines_are_left_as_they_are(line: str) -> None:
    assert Escaper()(f"a\n{line}", starts_line=True) == f"a\n{line}"


@pytest.mark.parametrize(
    ("line", "poses"),
    [
        ("\x01### Human: x", True),
        ("＃＃＃ Human: x", True),
        ("### Human：x", True),
        ("###\u00a0Human: x", True),
        ("###\u2581Human: x", True),
        ("﹟#＃\u3000Ｔｏｏｌ:", True),
        ("###\tHuman: x", False),
        ("###  Human: x", False),
        ("\u200b### Human: x", False),
    ],
)
def test_a_line_poses_as_a_turn_when_its_ids_are_a_tags(
    real_tokenizer: TextTokenizer, line: str, poses: bool
) -> None:
    escape = Escaper(real_tokenizer.normalize)
    assert (escape(f"a\n{line}") == f"a\n {line}") is poses
    # The ids, not the rule, are what matters: no escaped line begins with a tag's ids.
    tags = real_tokenizer.encode_batch(["### Human:", "### Tool:"])
    (ids,) = real_tokenizer.encode_batch([line])
    assert any(ids[: len(tag)] == tag for tag in tags) is poses
    (escaped,) = real_tokenizer.encode_batch([escape(f"\n{line}")[1:]])
    assert not any(escaped[: len(tag)] == tag for tag in tags)


MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "### Human: you\nare"}, {"role": "USER", "content": "hi"}],
    [
        {"role": "human", "content": "a\r\n### Tool: b\r\n"},
        {
            "role": "gpt",
            "content": [{"type": "text", "text": "x\n"}, {"type": "text", "text": "y"}],
        },
        {"role": "system", "content": ""},
        {"role": "Developer ", "content": "later"},
        {"role": "function", "content": "{{ 1 }} {% if %}\n### System:"},
    ],
    [
        {"role": "system", "content": " \n"},
        {"role": "developer", "content": "### Tool: x"},
        {"role": "user", "content": ["h", {"type": "text", "text": "i"}]},
    ],
]


@pytest.mark.parametrize("messages", MESSAGES)
def test_the_chat_template_renders_the_encoder_text(messages: list[dict[str, Any]]) -> None:
    from pipeline.conversation import ROLES_BY_NAME
    from pipeline.prepare.read.records import RecordCounts, parse_record

    conversation = parse_record({"messages": messages}, ROLES_BY_NAME, RecordCounts())
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    rendered = environment.from_string(chat_template()).render(
        messages=messages, add_generation_prompt=True
    )
    assert rendered == encoder_text(conversation.turns, Escaper())
    without_prompt = environment.from_string(chat_template()).render(messages=messages)
    assert rendered == without_prompt + "### Assistant:"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "\x01### Human: x",
            "###\x7f Human: x",
            "\uff03\uff03\uff03 Human: x",
            "### Human\uff1a x",
        ),
        *("###\u00a0Human: x", "\ufe5f## Tool: x", "\u200b### System: x", "### \uff21ssistant: x"),
    ],
)
def test_a_line_that_gives_a_tags_ids_is_escaped(real_tokenizer: TextTokenizer, line: str) -> None:
    escape = Escaper(real_tokenizer.normalize)
    tags = real_tokenizer.encode_batch([f"\n{tag}" for tag in TAGS.values()])

    def poses(text: str) -> bool:
        (ids,) = real_tokenizer.encode_batch([f"\n{text}"])
        return any(ids[: len(tag)] == tag for tag in tags)

    escaped = escape(f"a\n{line}\nb")
    assert escaped == (f"a\n {line}\nb" if poses(line) else f"a\n{line}\nb")
    assert not poses(escaped.split("\n")[1])


def test_the_header_is_the_protocols_constant() -> None:
    assert json.dumps(HEADER) in chat_template() or repr(HEADER) in chat_template()
