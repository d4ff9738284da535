"""A request to what the engine is asked: ids, and how each answer is written."""

import itertools
import threading
from dataclasses import replace
from typing import TypeVar

from pipeline.conversation import ROLES_BY_NAME, Conversation
from pipeline.generation.config import ServeConfig
from pipeline.generation.engine.answer import Sampling
from pipeline.generation.model import TrainedModel
from pipeline.generation.server.answers import Asked
from pipeline.generation.server.failures import RefusedError
from pipeline.generation.server.schema import ChatRequest, CompletionRequest, GenerationRequest
from pipeline.prepare.read.records import RecordCounts, parse_record
from pipeline.prepare.read.values import RejectedError

_SEEDS = 1 << 32
_T = TypeVar("_T")


class Converter:
    """Converts requests, in any thread.

    Args:
        model: The trained model.
        config: What holds where a request does not say.
    """

    def __init__(self, model: TrainedModel, config: ServeConfig) -> None:
        self._model, self._config = model, config
        self._usual = model.sampling(config)
        self._lock = threading.Lock()  # the encoder remembers words
        self._answered = itertools.count()

    def chat(self, request: ChatRequest) -> list[Asked]:
        """Return what a chat asks: the text that training makes of such turns.

        Raises:
            RefusedError: The messages are no conversation, or nobody asks anything in it.
            RecordError: The same.
        """
        conversation = _conversation(request)
        with self._lock:
            ids = self._model.source.ids(conversation)
        return self._asked([ids], request)

    def completion(self, request: CompletionRequest) -> list[Asked]:
        """Return what a completion asks: each prompt is the encoder's text as it is.

        Raises:
            RefusedError: A prompt is empty, or longer than the window.
        """
        return self._asked([self._prompt(prompt) for prompt in request.prompts], request)

    def _prompt(self, prompt: str) -> list[int]:
        if not prompt:
            raise RefusedError(400, "the prompt is empty", param="prompt", code="invalid_value")
        ids = self._model.source.text_ids(prompt)
        window = self._model.source.model_max_length
        if len(ids) > window:
            raise RefusedError(
                400,
                f"the model reads {window:,} tokens at most, and the prompt has {len(ids):,}",
                param="prompt",
                code="context_length_exceeded",
            )
        return ids

    def _asked(self, rows: list[list[int]], request: GenerationRequest) -> list[Asked]:
        """Return the answers that are wanted: ``n`` to each row, each with a seed of its own."""
        count = len(rows) * (request.n or 1)
        if count > self._config.max_queue:
            most = self._config.max_queue
            text = f"{count} answers to one request: this server's queue holds {most}"
            raise RefusedError(400, text, param="n", code="invalid_value")
        sampling, first = self._sampling(request), request.seed
        if first is None:
            # As in a chat, each answer draws anew; the first with the seed of the flag itself.
            first = self._config.seed + next(self._answered)
        seeds = itertools.count(first)
        return [
            Asked(ids, replace(sampling, seed=next(seeds) % _SEEDS))
            for ids in rows
            for _ in range(request.n or 1)
        ]

    def _sampling(self, request: GenerationRequest) -> Sampling:
        usual = self._usual
        temperature = _given(request.temperature, usual.temperature)
        asked = request.most_tokens or usual.max_new_tokens
        return Sampling(
            max_new_tokens=min(asked, usual.max_new_tokens),
            temperature=temperature,
            top_p=_given(request.top_p, usual.top_p),
            top_k=_given(request.top_k, usual.top_k),
            num_beams=usual.num_beams if temperature == 0 else 1,  # beam search does not sample
            repetition_penalty=_given(request.repetition_penalty, usual.repetition_penalty),
            stop=usual.stop if request.stop is None else tuple(request.stop),
        )


def _given(value: _T | None, usual: _T) -> _T:
    return usual if value is None else value


def _conversation(request: ChatRequest) -> Conversation:
    record = {"messages": request.messages}
    if request.tool_choice != "none":
        record["tools"] = request.tools or []
    try:
        return parse_record(record, ROLES_BY_NAME, RecordCounts())
    except RejectedError as error:
        text = error.detail.removesuffix("; see --role")
        raise RefusedError(400, text, param="messages", code="invalid_value") from error
