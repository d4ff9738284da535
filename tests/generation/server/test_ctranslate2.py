"""A server whose answers CTranslate2 writes: the same answers, in pieces, to many at once."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from scripts.tiny_t5 import SAMPLE, read_texts
from tests.generation.server.conftest import ENDLESS, KEY, Server

pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")


async def answered(server: Server, prompts: list[str], **settings: Any) -> list[Any]:
    """Ask for all at once; return text, end and length of each."""
    url = f"{server.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        create: Any = client.completions.create
        asked = (create(model="out", prompt=p, max_tokens=20, **settings) for p in prompts)
        answers = await asyncio.gather(*asked)
    return [(a.choices[0].text, a.choices[0].finish_reason, a.usage) for a in answers]


@pytest.mark.slow
def test_it_answers_as_transformers_does_and_lets_go_of_what_nobody_waits_for(
    server: Server, trained: Path, tmp_path: Path, endless: str
) -> None:
    prompts = [text[: 10 + 3 * i] for i, text in enumerate(read_texts(SAMPLE)[:40])]
    flags = ("--engine", "ctranslate2", "--max-new-tokens", str(ENDLESS))
    with Server(trained, tmp_path, *flags, key=KEY) as other, other.client() as client:
        expected = asyncio.run(answered(server, prompts))
        assert asyncio.run(answered(other, prompts)) == expected
        assert {reason for _, reason, _ in expected} == {"stop", "length"}
        whole = expected[0][0]
        stopped = asyncio.run(answered(other, prompts[:1], stop=whole[4:6]))
        assert stopped[0][:2] == (whole[: whole.index(whole[4:6])], "stop")

        create: Any = client.completions.create
        stream = create(model="out", prompt=prompts[0], max_tokens=20, stream=True)
        pieces = [part.choices[0].text for part in stream]
        assert "".join(pieces) == whole and len(pieces) > 3
        many = create(model="out", prompt=prompts[0], max_tokens=20, n=3, temperature=1.0)
        assert [choice.index for choice in many.choices] == [0, 1, 2]

        before = other.metric("duet_answer_tokens_total")
        left = create(model="out", prompt=endless, max_tokens=ENDLESS, stream=True)
        next(iter(left))
        left.close()
        other.wait_until("duet_answers_running", lambda value: value == 0)
        assert other.metric("duet_answer_tokens_total") - before < ENDLESS
        other.send_signal(signal.SIGTERM)
        assert other.wait() == 0
    assert "Traceback" not in other.said()
