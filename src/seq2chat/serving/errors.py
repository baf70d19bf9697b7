"""Errors in OpenAI's form: a sentence, the field and a code."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from seq2chat.config import UserError
from seq2chat.generation.request import ContextExceeded, DeadlinePassed, QueueFull
from seq2chat.serving.answer import BadField
from seq2chat.serving.engine_thread import Stopped
from seq2chat.serving.sse import to_json

ROUTES = (
    "POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /tokenize, "
    "/detokenize, /api/traces; GET /v1/models, /api/traces/{id}/tensor, /api/runs, /health, "
    "/metrics, /docs, /"
)

CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "value_error": "unsupported_value",
}
"""OpenAI's code by pydantic's type of error."""


class UnknownModel(Exception):
    """Raised when there is no model of that name."""


class UnknownTrace(Exception):
    """Raised when there is no trace of that id, or none of this API key."""


class UnknownRun(Exception):
    """Raised when there is no run of that name, or no such checkpoint or sample of it."""


def respond(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(to_json(content), status, headers, media_type="application/json")


def describe(error: Exception) -> dict[str, Any]:
    """Return an error in OpenAI's form. Messages that are not meant for clients are left out."""
    kind = "invalid_request_error"
    message = str(error)
    param = code = None
    match error:
        case QueueFull():
            kind = "rate_limit_error"
            code = "rate_limit_exceeded"
        case Stopped() | DeadlinePassed():
            kind = "server_error"
        case ContextExceeded():
            code = "context_length_exceeded"
        case UnknownModel():
            param = "model"
            code = "model_not_found"
        case UnknownTrace():
            code = "trace_not_found"
        case UnknownRun():
            code = "run_not_found"
        case BadField():
            param = error.param or None
            code = error.code
        case UserError() | HTTPException():
            pass
        case _:
            kind = "server_error"
            message = "The server made a mistake."
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def on_error(request: Request, error: Exception) -> Response:
    """Return the response to a request that ended with `error`."""
    match error:
        case RequestValidationError():
            return respond(describe(_bad_field(request, error)), 400)
        case HTTPException():
            content = describe(error)
            content["error"]["message"] = _http_message(request, error)
            return respond(content, error.status_code)
        case QueueFull():
            return respond(describe(error), 429, {"retry-after": "1"})
        case Stopped():
            return respond(describe(error), 503, {"retry-after": "5"})
        case DeadlinePassed():
            return respond(describe(error), 504)
        case UnknownModel() | UnknownTrace() | UnknownRun():
            return respond(describe(error), 404)
        case UserError():
            return respond(describe(error), 400)
    return respond(describe(error), 500)


def _http_message(request: Request, error: HTTPException) -> str:
    """Return the message for an error of the router or of a route."""
    route = f"{request.method} {request.url.path[:100]}"
    if error.status_code == 404 and error.detail == "Not Found":
        return f"There is no route {route}. There are {ROUTES}."
    if error.status_code == 405:
        return f"There is no route {route}, but one of another method. There are {ROUTES}."
    return str(error.detail)


def _bad_field(request: Request, error: RequestValidationError) -> BadField:
    """Return the most useful one of the errors of a body."""
    errors = error.errors()
    if errors[0]["loc"][0] in ("query", "path"):
        return _bad_parameter(errors[0])
    body = error.body
    if not isinstance(body, dict):
        if "json" not in request.headers.get("content-type", ""):
            return BadField(
                "",
                "The body is not marked as JSON; send the header Content-Type: application/json.",
            )
        return BadField("", f"The body is no request in JSON: {errors[0]['msg']}.")
    places = [_place(one["loc"][1:], body, one["type"] == "missing") for one in errors]

    def usefulness(number: int) -> tuple[bool, int, int]:
        # Each branch of a union gives errors. The errors of the branch that the client meant are
        # deeper, and not about the type of the whole field.
        is_type = errors[number]["type"].endswith("_type")
        return not is_type, places[number].count(".") + places[number].count("["), -number

    best = max(range(len(errors)), key=usefulness)
    kind = errors[best]["type"]
    place = places[best]
    default = "invalid_type" if kind.endswith("_type") else "invalid_value"
    code = CODES.get(kind, default)
    if kind == "extra_forbidden":
        return BadField(place, f"{place[:200]} is not supported; leave it out.", code)
    message = errors[best]["msg"].removeprefix("Value error, ")
    return BadField(place, f"{place[:200]}: {message[:1].lower()}{message[1:]}.", code)


def _bad_parameter(error: dict[str, Any]) -> BadField:
    """Return the error of one parameter of a query."""
    name = str(error["loc"][-1])[:200]
    kind = error["type"]
    if kind == "extra_forbidden":
        return BadField(name, f"{name} is not supported; leave it out.", CODES[kind])
    message = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
    return BadField(name, f"{name}: {message}.", CODES.get(kind, "invalid_value"))


def _place(location: Sequence[str | int], body: Any, is_missing: bool) -> str:
    """Return the place of an error in the body, for example `messages[0].content[1]`.

    `location` is pydantic's, which also has the names of its types. They are not in the body, and
    neither is the last part if the field `is_missing`.
    """
    place = ""
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(part, int) and isinstance(body, list):
            place += f"[{part}]"
            body = body[part] if part < len(body) else None
        elif isinstance(body, dict) and (part in body or (is_missing and is_last)):
            place += f".{part}" if place else str(part)
            body = body.get(part)
    return place
