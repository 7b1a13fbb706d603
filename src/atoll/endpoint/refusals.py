"""Driver: what went wrong, as OpenAI's API says it: a status, and a body that names the field to mend."""

from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as Call
from starlette.responses import Response

from atoll.errors import (
    AnswerFailed,
    ContextExceeded,
    DeadlineImpossible,
    DeadlinePassed,
    Draining,
    EngineLost,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestFailed,
)

_ERRORS: Final[tuple[tuple[Any, ...], ...]] = (
    (ContextExceeded, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequest, 400, "invalid_request_error", None),
    (NotServed, 404, "invalid_request_error", "model_not_found"),
    (Draining, 503, "server_error", "overloaded"),
    (DeadlineImpossible, 503, "server_error", "deadline_impossible"),
    (Overloaded, 429, "rate_limit_error", "rate_limit_exceeded"),
    (DeadlinePassed, 504, "timeout_error", "deadline_passed"),
    (EngineLost, 500, "server_error", "engine_lost"),
    (AnswerFailed, 500, "server_error", "answer_failed"),
    (RequestFailed, 502, "server_error", "upstream_failed"),
)


def described(error: RequestFailed) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    param = error.field or None if isinstance(error, InvalidRequest) else None
    status, kind, code = next(found for which, *found in _ERRORS if isinstance(error, which))
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def refused(error: RequestFailed) -> Response:
    """The answer instead of an answer."""
    status, body = described(error)
    headers = {"Retry-After": f"{max(1, round(error.retry_s))}"} if isinstance(error, Overloaded) else None
    return in_json(body, status, headers)


def refused_with(status: int, message: str, kind: str, code: str | None) -> Response:
    """The same, where nothing was raised."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return in_json({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


async def http_error(call: Call, error: Exception) -> Response:
    """What Starlette raises: no such path, no such method; and what we do in its name."""
    assert isinstance(error, HTTPException)
    messages = {404: f"there is nothing at {call.url.path}", 405: f"{call.method} is not for {call.url.path}"}
    message = messages.get(error.status_code, str(error.detail))
    found = refused_with(error.status_code, message, "invalid_request_error", None)
    found.headers.update(error.headers or {})
    return found


def in_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
