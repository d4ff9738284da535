"""Answers as OpenAI's objects: a whole one, or a stream of server-sent events."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from pipeline.generation.engine.answer import Result
from pipeline.generation.server.answers import Answers
from pipeline.generation.server.failures import as_refusal

Kind = Literal["chat", "text"]
_PREFIXES = {"chat": "chatcmpl-", "text": "cmpl-"}
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}


class Reply:
    """What is sent back to one request.

    Args:
        kind: Of a chat, or of a plain prompt.
        model: The model's name.
        answers: What is being written for it.
    """

    def __init__(self, kind: Kind, model: str, answers: Answers) -> None:
        self._kind, self._answers = kind, answers
        self._head: dict[str, Any] = {
            "id": _PREFIXES[kind] + secrets.token_hex(12),
            "object": _OBJECTS[kind],
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self) -> dict[str, Any]:
        """Return all of it, once it is written."""
        results = await self._answers.results()
        choices = [self._choice(index, result) for index, result in enumerate(results)]
        return self._head | {"choices": choices, "usage": self._usage(results)}

    async def events(self, *, with_usage: bool) -> AsyncIterator[str]:
        """Yield it in events as it comes; an error in the middle is an event too."""
        if self._kind == "chat":
            self._head["object"] = "chat.completion.chunk"
        # Clients that asked for the count of tokens find the key in each event.
        self._extra: dict[str, Any] = {"usage": None} if with_usage else {}
        results: list[Result] = []
        started: set[int] = set()
        try:
            async for index, text, result in self._answers:
                if result is not None:
                    results.append(result)
                yield self._event([self._part(index, text, result, is_first=index not in started)])
                started.add(index)
            if with_usage:
                yield _event(self._head | {"choices": [], "usage": self._usage(results)})
            yield "data: [DONE]\n\n"
        except Exception as error:  # the status is sent already
            yield _event(as_refusal(error).body())

    def _event(self, choices: list[dict[str, Any]]) -> str:
        return _event(self._head | {"choices": choices} | self._extra)

    def _choice(self, index: int, result: Result) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "logprobs": None}
        if self._kind == "chat":
            choice["message"] = {"role": "assistant", "content": result.text, "refusal": None}
        else:
            choice["text"] = result.text
        return choice | {"finish_reason": result.finish_reason}

    def _part(
        self, index: int, text: str, result: Result | None, *, is_first: bool
    ) -> dict[str, Any]:
        reason = None if result is None else result.finish_reason
        part: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
        if self._kind == "text":
            return part | {"text": text}
        delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if text or is_first:
            delta["content"] = text
        return part | {"delta": delta}

    def _usage(self, results: Sequence[Result]) -> dict[str, int]:
        prompt, written = self._answers.prompt_tokens, sum(r.num_tokens for r in results)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        }


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
