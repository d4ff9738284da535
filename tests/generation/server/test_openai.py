"""OpenAI's own client against a server: what it asks for is what it gets."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from pipeline.generation.config import GenerateConfig
from pipeline.generation.generate import generate
from scripts.tiny_t5 import SAMPLE, read_texts
from tests.conftest import record
from tests.generation.server.conftest import KEY, Server

MODEL = "out"
LENGTH = 12
MESSAGES: Any = [
    {"role": "system", "content": "Be odd."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": [{"type": "text", "text": "Who are you?"}]},
]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def chat(client: OpenAI, content: str = "Hi", **settings: Any) -> Any:
    given = {"messages": [{"role": "user", "content": content}], "max_tokens": LENGTH} | settings
    return client.chat.completions.create(model=MODEL, **given)


def test_64_at_once_are_answered_as_duet_generate_answers(
    server: Server, trained: Path, tmp_path: Path
) -> None:
    questions = [text[: 10 + 5 * i] for i, text in enumerate(read_texts(SAMPLE)[:64])]
    (tmp_path / "in.json").write_text(json.dumps([record(None, q) for q in questions]))
    config = GenerateConfig(
        model=str(trained),
        data_path=(str(tmp_path / "in.json"),),
        output_path=str(tmp_path / "out.jsonl"),
        max_new_tokens=LENGTH,
    )
    rows = [json.loads(line) for line in generate(config).read_text("utf-8").splitlines()]

    async def ask_all() -> list[Any]:
        url = f"{server.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            create: Any = client.chat.completions.create
            return await asyncio.gather(
                *(
                    create(
                        model=MODEL,
                        messages=[{"role": "user", "content": question}],
                        max_completion_tokens=LENGTH,
                    )
                    for question in questions
                )
            )

    choices = [answer.choices[0] for answer in asyncio.run(ask_all())]
    assert [c.message.content for c in choices] == [row["generated"] for row in rows]
    assert [c.finish_reason for c in choices] == [row["finish_reason"] for row in rows]
    assert len({row["generated"] for row in rows}) > 10
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}


def test_a_stream_is_the_answer_in_pieces(client: OpenAI) -> None:
    whole = chat(client, messages=MESSAGES)
    options = {"include_usage": True}
    events = list(chat(client, messages=MESSAGES, stream=True, stream_options=options))
    *parts, last = events
    deltas = [part.choices[0].delta for part in parts]
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    assert [d.role for d in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert len(deltas) > 3
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage == whole.usage
    assert whole.usage.completion_tokens == LENGTH
    assert whole.usage.total_tokens == LENGTH + whole.usage.prompt_tokens
    assert len({event.id for event in events}) == 1
    assert not any(part.usage for part in chat(client, stream=True))


def test_usage_counts_the_encoder_row_and_what_was_written(client: OpenAI, trained: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(trained)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    usage = chat(client, n=3).usage
    assert usage.prompt_tokens == len(tokenizer(text).input_ids)
    assert usage.completion_tokens == 3 * LENGTH


def test_a_plain_prompt_is_the_encoders_text(client: OpenAI, trained: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(trained)
    messages = [{"role": "user", "content": "One plus one?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    both = [text, "something else"]
    answer = client.completions.create(model=MODEL, prompt=both, max_tokens=LENGTH, n=2)
    alike = chat(client, messages=messages)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    texts = [c.text for c in answer.choices]
    assert texts[0] == texts[1] == alike.choices[0].message.content
    assert texts[2] == texts[3] != texts[0]
    assert answer.usage and alike.usage
    assert answer.usage.prompt_tokens > alike.usage.prompt_tokens
    stream = client.completions.create(model=MODEL, prompt=text, max_tokens=LENGTH, stream=True)
    assert "".join(part.choices[0].text for part in stream) == texts[0]


def test_stop_ends_before_its_text(client: OpenAI) -> None:
    whole = chat(client).choices[0].message.content
    stop = whole[5:8]
    for given in (stop, ["no such text", stop]):
        choice = chat(client, stop=given).choices[0]
        assert choice.message.content == whole[: whole.index(stop)]
        assert choice.finish_reason == "stop"
    pieces = [part.choices[0].delta.content or "" for part in chat(client, stop=stop, stream=True)]
    assert "".join(pieces) == whole[: whole.index(stop)]


def test_seeds_and_choices(client: OpenAI) -> None:
    def texts(**settings: Any) -> list[str]:
        answer = chat(client, temperature=1.5, top_p=0.9, **settings)
        return [choice.message.content for choice in answer.choices]

    four = texts(seed=7, n=4)
    assert len(set(four)) == 4
    assert texts(seed=7, n=4) == four
    assert texts(seed=8, n=3) == four[1:]  # each choice has a seed of its own, one more each
    assert texts() != texts()
    assert len(set(texts(n=4))) == 4
    merged: dict[int, str] = dict.fromkeys(range(4), "")
    for part in chat(client, temperature=1.5, top_p=0.9, seed=7, n=4, stream=True):
        merged[part.choices[0].index] += part.choices[0].delta.content or ""
    assert list(merged.values()) == four


def test_tools_are_in_the_text_that_the_model_reads(client: OpenAI) -> None:
    function = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    asked: list[Any] = [
        {"role": "system", "content": "S."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]  # fmt: skip
    line = "Tools: " + json.dumps(tools, ensure_ascii=False)
    turns = '### Human: Hi\n### Assistant: {"name": "add", "arguments": {}}\n### Tool: 2\n'
    text = f"S.\n{line}\n\n{turns}### Assistant:"
    plain = client.completions.create(model=MODEL, prompt=text, max_tokens=LENGTH)
    answer = chat(client, messages=asked, tools=tools)
    assert answer.choices[0].message.content == plain.choices[0].text
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens  # type: ignore[union-attr]
    without = chat(client, messages=asked, tools=tools, tool_choice="none")
    assert without.usage.prompt_tokens == chat(client, messages=asked).usage.prompt_tokens
    assert without.usage.prompt_tokens < answer.usage.prompt_tokens


def test_the_model_is_named_after_its_folder(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    for call in (
        lambda: client.models.retrieve("gpt-x"),
        lambda: client.completions.create(model="gpt-x", prompt="x"),
        lambda: client.chat.completions.create(model="gpt-x", messages=ONE),
    ):
        with pytest.raises(openai.NotFoundError) as raised:
            call()
        assert raised.value.code == "model_not_found"


ONE: Any = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"logprobs": True}, "logprobs", "does not support it"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "does not support it"),
        ({"presence_penalty": 1}, "presence_penalty", "does not support it"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not support it"),
        ({"tool_choice": "required"}, "tool_choice", "'auto' or 'none'"),
        ({"extra_body": {"temprature": 1}}, "temprature", "Unknown parameter"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "martian", "content": "x"}]}, "messages", "is 'martian'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages", "not a number"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "without a question"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "image"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_name(
    client: OpenAI, given: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, **{"messages": ONE} | given)
    error = raised.value
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert says in error.message


def test_what_changes_nothing_is_taken(client: OpenAI) -> None:
    plain = chat(client, messages=ONE).choices[0].message
    nothing = {"user": "me", "metadata": {"a": "b"}, "store": False, "presence_penalty": 0,
               "logit_bias": {}, "response_format": {"type": "text"}, "logprobs": False,
               "service_tier": "auto", "parallel_tool_calls": True, "stop": None}  # fmt: skip
    assert chat(client, messages=ONE, **nothing).choices[0].message == plain
    more = {"top_k": 1, "repetition_penalty": 1.0}
    hot = chat(client, messages=ONE, temperature=9, extra_body=more).choices[0].message
    assert hot == plain  # the likeliest of one


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"messages": [', "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 100_000, "pars"),
        (b"\xff\xfe\x00", "pars"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "finite"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}', "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}', "not an object"),
    ],
)
def test_broken_bodies_get_openais_error(server: Server, body: bytes, says: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    response = httpx2.post(url, content=body, headers=headers)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and says in error["message"], error


def test_half_a_character_is_no_fault(client: OpenAI, server: Server) -> None:
    body = b'{"messages": [{"role": "user", "content": "x \\ud800 y"}], "max_tokens": 3}'
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    response = httpx2.post(url, content=body, headers=headers).json()
    alike = chat(client, content="x \ufffd y", max_tokens=3)
    assert response["choices"][0]["message"]["content"] == alike.choices[0].message.content


def test_a_prompt_longer_than_the_window_is_refused_and_a_chat_is_cut(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model=MODEL, prompt="word " * 500)
    assert raised.value.code == "context_length_exceeded"
    usage = chat(client, "word " * 500).usage
    assert usage.prompt_tokens <= 200


def test_a_wrong_key_is_refused(server: Server) -> None:
    for key in ("wrong", KEY + "x", KEY[:-1], KEY.upper()):
        with (
            server.client(api_key=key) as client,
            pytest.raises(openai.AuthenticationError) as raised,
        ):
            client.models.list()
        assert raised.value.code == "invalid_api_key"
        assert key not in raised.value.message
    for header in ({}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            assert httpx2.get(f"{server.url}{path}", headers=header).status_code == 401
    assert httpx2.get(f"{server.url}/health").status_code == 200
    assert KEY not in server.said()
