"""Whatever goes wrong, as OpenAI's clients expect to be told: ``{"error": {…}}``."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pipeline.errors import DuetError, RecordError
from pipeline.generation.engine.scheduler import QueueFullError

_RETRY_SECONDS = 1
_BY_STATUS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class RefusedError(Exception):
    """A request that is not carried out.

    Args:
        status: Of HTTP.
        message: What is wrong, for a person.
        param: The field that is wrong.
        code: What is wrong, for a program.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers["Retry-After"] = str(_RETRY_SECONDS)

    def body(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        kind = _BY_STATUS.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }

    def response(self) -> Response:
        """Return it as a response."""
        return json_response(self.body(), self.status, self.headers)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a value as JSON, in ASCII: a text may hold half of a character."""
    return Response(json.dumps(value), status, dict(headers or {}), "application/json")


def queue_is_full(got: str) -> RefusedError:
    """Return what is said where more wait than may."""
    return RefusedError(
        429, f"too many requests: {got}; try again soon", code="rate_limit_exceeded"
    )


def as_refusal(error: BaseException) -> RefusedError:
    """Return what to say of an error that an answer met."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, QueueFullError):
        return queue_is_full(str(error))
    if isinstance(error, DuetError):
        param = "messages" if isinstance(error, RecordError) else None
        text = f"{error.what}: {error.got}; {error.do}"
        return RefusedError(400, text, param=param, code="invalid_value")
    return RefusedError(500, f"the answer could not be written: {type(error).__name__}")


def answer_errors(app: FastAPI) -> None:
    """Have an application answer every error in OpenAI's form."""

    def refused(_: Request, error: Exception) -> Response:
        return as_refusal(error).response()

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _of_validation(error).response()

    def by_status(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = error.headers
        return RefusedError(error.status_code, str(error.detail), headers=headers).response()

    for kind in (RefusedError, DuetError, QueueFullError, Exception):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, by_status)


def _of_validation(error: RequestValidationError) -> RefusedError:
    """Return the first thing that is wrong with a body."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return RefusedError(
            400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json"
        )
    if not place:
        do = "send an object of JSON, with Content-Type: application/json"
        return RefusedError(400, f"the body is not an object; {do}", code="invalid_json")
    param = place[0][:100]
    if first["type"] == "extra_forbidden":
        return RefusedError(
            400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter"
        )
    if first["type"] == "missing":
        text = f"Missing required parameter: '{param}'."
        return RefusedError(400, text, param=param, code="missing_required_parameter")
    reason = str(first["msg"]).removeprefix("Value error, ")
    return RefusedError(400, f"'{param}': {reason}", param=param, code="invalid_value")
