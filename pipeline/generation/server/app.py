"""The routes: OpenAI's endpoints, the chat page, health and metrics."""

import asyncio
import re
import time
from pathlib import Path

from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from pipeline.content_security import hash_source
from pipeline.generation.config import ServeConfig
from pipeline.generation.engine.scheduler import Engine
from pipeline.generation.model import TrainedModel
from pipeline.generation.server.answers import Answers, Asked
from pipeline.generation.server.conversion import Converter
from pipeline.generation.server.failures import RefusedError, answer_errors, json_response
from pipeline.generation.server.gate import Gate
from pipeline.generation.server.metrics import Metrics
from pipeline.generation.server.responses import Kind, Reply
from pipeline.generation.server.schema import ChatRequest, CompletionRequest, GenerationRequest
from pipeline.generation.server.sending import GONE, EventStream, unless_gone

_PAGE = Path(__file__).with_name("page.html")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Service:
    """What the routes share.

    Args:
        model: Its name for clients is that of its folder.
        engine: Writes the answers; it is running.
        config: The settings.
    """

    def __init__(self, model: TrainedModel, engine: Engine, config: ServeConfig) -> None:
        self.name = Path(model.name).resolve().name
        self.metrics = Metrics(engine)
        self.convert = Converter(model, config)
        self._engine, self._created = engine, int(time.time())
        self._live: set[Answers] = set()

    def model_object(self) -> dict[str, str | int]:
        """Return OpenAI's description of the model."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "duet",
        }

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not this one.

        Raises:
            RefusedError: It is another.
        """
        if name not in (None, self.name):
            text = f"The model '{name[:100]}' does not exist; this server has '{self.name}'."
            raise RefusedError(404, text, param="model", code="model_not_found")

    def cancel_all(self) -> None:
        """End all answers: the server stops at once."""
        for answers in self._live:
            answers.cancel()

    async def answer(
        self, http: Request, kind: Kind, request: GenerationRequest, asked: list[Asked]
    ) -> Response:
        """Answer a request: whole, or as a stream."""
        answers = Answers(self._engine, asked, streaming=bool(request.stream))
        self._live.add(answers)
        self.metrics.prompt_tokens.inc(answers.prompt_tokens)
        reply = Reply(kind, self.name, answers)
        if request.stream:
            events = reply.events(with_usage=request.wants_usage)
            return EventStream(events, lambda: self._end(answers))
        try:
            whole = await unless_gone(http.receive, reply.whole())
            return Response(status_code=GONE) if whole is None else json_response(whole)
        finally:
            self._end(answers)

    def _end(self, answers: Answers) -> None:
        answers.cancel()
        self._live.discard(answers)
        self.metrics.answer_tokens.inc(answers.written_tokens)


def make_app(service: Service, config: ServeConfig, max_rows: int) -> Gate:
    """Return the application; its gate tells what is in flight."""
    # Without the pages of documentation: what they show is loaded from elsewhere.
    app = FastAPI(title="duet serve", docs_url=None, redoc_url=None)
    answer_errors(app)
    _add_endpoints(app, service)
    gate = Gate(
        app,
        service.metrics,
        api_key=config.api_key,
        hosts=(*_LOOPBACK_NAMES, config.host.lower()),
        max_requests=config.max_queue + max_rows,
    )
    _add_pages(app, service, gate)
    return gate


def _add_endpoints(app: FastAPI, service: Service) -> None:
    """Add OpenAI's."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        service.check_model(request.model)
        asked = await asyncio.to_thread(service.convert.chat, request)
        return await service.answer(http, "chat", request, asked)

    @app.post("/v1/completions", response_model=None)
    async def complete(request: CompletionRequest, http: Request) -> Response:
        """Answer a text that the encoder reads as it is."""
        service.check_model(request.model)
        asked = await asyncio.to_thread(service.convert.completion, request)
        return await service.answer(http, "text", request, asked)

    @app.get("/v1/models", response_model=None)
    async def models() -> Response:
        """List the one model."""
        return json_response({"object": "list", "data": [service.model_object()]})

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(name: str) -> Response:
        """Describe the one model."""
        service.check_model(name)
        return json_response(service.model_object())


def _add_pages(app: FastAPI, service: Service, gate: Gate) -> None:
    """Add what people and monitors ask for."""
    page = _PAGE.read_text(encoding="utf-8")
    # Its own script alone may run, whatever an answer holds.
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = (
        f"default-src 'none'; script-src '{hash_source(script)}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )

    @app.get("/", response_model=None)
    async def chat_page() -> Response:
        """Show the chat page."""
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return Response(page, headers=headers, media_type="text/html")

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Return whether requests are taken."""
        if gate.is_draining:
            return json_response({"status": "stopping"}, 503)
        return json_response({"status": "ok"})

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Return the counts, for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
