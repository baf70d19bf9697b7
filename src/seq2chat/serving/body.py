"""The body of a request: a JSON value, or one sentence on why it is none."""

import json
import math
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Never

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response


class JSONRoute(APIRoute):
    """A route whose requests are read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, which reads the body with `request.json()`."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(JSONRequest(request.scope, request.receive))

        return handler


class JSONRequest(Request):
    """A request with a body in plain JSON."""

    async def json(self) -> Any:
        """Return the value of the body. Raises HTTPException for one that is compressed, and as
        `parse` does."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise HTTPException(
                400, f"The body is compressed by {encoding[:40]}; send it without Content-Encoding."
            )
        return parse(await self.body())


def parse(body: bytes) -> Any:
    """Return the value of a text in JSON, in which every number is finite. Raises HTTPException
    with the reason."""
    try:
        return json.loads(body, parse_float=_finite, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        reason = (
            f"{error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}"
        )
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "its lists and objects are nested too deeply"
    except ValueError:  # of Python's bound on the conversion of digits, which takes quadratic time
        reason = f"an integer has more than {sys.get_int_max_str_digits():,} digits"
    raise HTTPException(400, f"The body cannot be read as JSON: {reason}.")


def _finite(number: str) -> float:
    """Return the value of a JSON number with a fraction or an exponent."""
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _refuse(number: str) -> Never:
    """Raise HTTPException for a number that is not finite: NaN, Infinity, or one beyond the largest
    float."""
    raise HTTPException(400, f"The body has the number {number[:40]}; write finite numbers only.")
