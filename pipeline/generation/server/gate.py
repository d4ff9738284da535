"""Who comes in: before a body is read, and with no more of it in memory than is allowed.

Checked in this order: host, key, size, whether the server is stopping, whether too many are in.
"""

import asyncio
import hmac
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.generation.server.failures import RefusedError, queue_is_full
from pipeline.generation.server.metrics import Metrics

MAX_BODY_BYTES = 4 * 1024**2
"""More text than any window holds."""
_BODY_SECONDS = 60
_DISCARDED_BYTES = 256 * 1024**2
"""Of a body that is refused, so much is read and thrown away: a client that is still sending does
not hear an answer, it meets a closed connection."""
_OPEN_PATHS = frozenset({"/", "/health"})
"""They hold nothing of anyone's, and need no key."""
GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})
_COUNTED_PATHS = GENERATING | _OPEN_PATHS | {"/v1/models", "/metrics"}


class Gate:
    """An ASGI application before another.

    Args:
        app: The application that it guards.
        metrics: Counts the requests.
        api_key: What each request must bring, or None.
        hosts: Without a key, the names under which the server may be asked for: a page that a
            browser shows could reach it by a name of its own otherwise.
        max_requests: More requests than so many at once are refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        api_key: str | None,
        hosts: Collection[str],
        max_requests: int,
    ) -> None:
        self._app, self._metrics = app, metrics
        self._key = None if api_key is None else api_key.encode()
        self._hosts, self._max_requests = frozenset(hosts), max_requests
        self.in_flight = 0
        """Requests for answers that are in."""
        self.is_draining = False
        """Whether those that are in are the last."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, start, status = scope["path"], time.monotonic(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        generates = path in GENERATING
        refusal = self._refusal(scope)
        self.in_flight += generates and refusal is None
        try:
            if refusal is not None:
                await self._refuse(refusal, scope, receive, watch)
            else:
                await self._enter(scope, receive, watch)
        finally:
            self.in_flight -= generates and refusal is None
            path = path if path in _COUNTED_PATHS else "other"
            self._metrics.requests.labels(path, status or "closed").inc()
            if generates and not refusal:
                self._metrics.seconds.labels(path).observe(time.monotonic() - start)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        """Return what is wrong with a request by its head."""
        headers, path = Headers(scope=scope), scope["path"]
        if self._key is None:
            name = _host_name(headers.get("host", ""))
            if name not in self._hosts:
                text = "this server has no API key, so it is asked for as localhost alone"
                return RefusedError(403, text, code="wrong_host")
        elif path not in _OPEN_PATHS and not self._has_key(headers):
            text = "Incorrect API key provided: send it as Authorization: Bearer KEY."
            challenge = {"WWW-Authenticate": "Bearer"}
            return RefusedError(401, text, code="invalid_api_key", headers=challenge)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > MAX_BODY_BYTES:
            return _too_large()
        if path not in GENERATING:
            return None
        if self.is_draining:
            close = {"Connection": "close"}
            return RefusedError(503, "the server is stopping", code="stopping", headers=close)
        if self.in_flight >= self._max_requests:
            return queue_is_full(f"{self.in_flight} are being answered or wait")
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode("utf-8", "surrogatepass")
        # The key first: of two texts of unequal length, the time tells that of the second.
        return hmac.compare_digest(self._key or b"", given) and scheme.lower() == "bearer"

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on with its body, read up to the limit."""
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:  # without a Content-Length
                        body.clear()
                        await self._refuse(_too_large(), scope, receive, send)
                        return
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            await RefusedError(408, "the body did not arrive").response()(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": bytes(body)}
        del body

        async def replay() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, replay, send)

    async def _refuse(
        self, refusal: RefusedError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        # Who asks before sending is told now; a body that is on its way is let come first.
        if "expect" not in Headers(scope=scope):
            await _discard(receive)
        await refusal.response()(scope, receive, send)


async def _discard(receive: Receive) -> None:
    """Read a body to its end, or a good part of it, and keep nothing."""
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while size < _DISCARDED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _too_large() -> RefusedError:
    limit = MAX_BODY_BYTES // 1024**2
    return RefusedError(413, f"the body has more than {limit} MiB", code="request_too_large")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
