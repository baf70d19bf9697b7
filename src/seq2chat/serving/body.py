"""Reads the body of a request as JSON. An error names the reason in one sentence."""

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
    """A route that reads its requests with `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, which reads the body with `request.json()`."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(JSONRequest(request.scope, request.receive))

        return handler


class JSONRequest(Request):
    """A request with a body in plain JSON."""

    async def json(self) -> Any:
        """Return the value of the body.

        Raises HTTPException for a compressed body, and as `parse` does.
        """
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise HTTPException(
                400, f"The body is compressed by {encoding[:40]}; send it without Content-Encoding."
            )
        return parse(await self.body())


def parse(body: bytes) -> Any:
    """Return the value of a JSON text whose numbers are all finite.

    Raises HTTPException for any other text.
    """
    try:
        return json.loads(body, parse_float=_finite, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        message = f"{error.msg[:1].lower()}{error.msg[1:]}"
        reason = f"{message} at line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "its lists and objects are nested too deeply"
    except ValueError:  # Python limits the number of digits, as converting takes quadratic time
        reason = f"an integer has more than {sys.get_int_max_str_digits():,} digits"
    raise HTTPException(400, f"The body cannot be read as JSON: {reason}.")


def _finite(number: str) -> float:
    """Return the value of a JSON number with a fraction or an exponent."""
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _refuse(number: str) -> Never:
    """Raise HTTPException for NaN, Infinity, or a number beyond the largest float."""
    raise HTTPException(400, f"The body has the number {number[:40]}; write finite numbers only.")
