"""What a client may ask: OpenAI's fields by their names, and two of transformers.

A field that would change the answer and that this server cannot do is refused with its name; one
that changes nothing here (``user``, ``metadata``) is taken and not looked at. Unknown ones are
refused: a misspelt ``temprature`` would go unnoticed otherwise.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

_MAX_STOPS = 4  # as OpenAI
_Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
MAX_CHOICES = 128
"""Most answers to one request, as OpenAI."""


def _only(*allowed: Any) -> AfterValidator:
    """Return the check of a field that is taken with some values alone; null is always one."""

    def check(value: Any) -> Any:
        if value is not None and not any(value == one for one in allowed):
            raise ValueError("this server does not support it: leave it out")
        return value

    return AfterValidator(check)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What both endpoints share. A field left out, or null, is as the server's flags say."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    max_tokens: int | None = Field(None, ge=1)
    """More than the server allows is as much as it allows."""
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[list[_Stop] | None, BeforeValidator(_listed)] = Field(
        None, max_length=_MAX_STOPS
    )
    """The texts at which an answer ends; or one."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Any, _only(0)] = None
    frequency_penalty: Annotated[Any, _only(0)] = None
    logit_bias: Annotated[Any, _only({})] = None
    user: Any = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether the last event of a stream counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(GenerationRequest):
    """The body of ``/v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    """Turns; what a turn may be is what ``prepare`` reads."""
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    """``none`` leaves the tools out of the text."""
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Annotated[Any, _only(False)] = None
    top_logprobs: Annotated[Any, _only(0)] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    modalities: Annotated[Any, _only(["text"])] = None
    audio: Annotated[Any, _only()] = None
    functions: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only("auto", "none")] = None
    web_search_options: Annotated[Any, _only()] = None
    metadata: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    verbosity: Any = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer, by the newer name or the older."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer


class CompletionRequest(GenerationRequest):
    """The body of ``/v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    """The encoder's text, as it is: nothing is put around it but what the tokenizer puts there."""
    best_of: Annotated[Any, _only(1)] = None
    echo: Annotated[Any, _only(False)] = None
    logprobs: Annotated[Any, _only(0)] = None
    suffix: Annotated[Any, _only("")] = None

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt
