"""Server-sent events: a stream of JSON objects that ends with `[DONE]`.

The stream ends early when the client disconnects or stops reading.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from seq2chat.config import UserError
from seq2chat.serving.engine_thread import Stopped

T = TypeVar("T")

SEND_SECONDS = 60.0  # in which a client must read each event


def to_json(content: Any) -> bytes:
    """Return `content` as JSON in ASCII, which can also write half a surrogate pair."""
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def to_long_json(content: Any, depth: int = 5) -> bytes:
    """Return the bytes of `to_json`, computed in small steps.

    A call of `json.dumps` holds Python's global lock to its end, so one call for a long answer
    would stall all other threads.
    """
    if depth and isinstance(content, dict):
        fields = [
            to_json(key) + b":" + to_long_json(value, depth - 1) for key, value in content.items()
        ]
        return b"{" + b",".join(fields) + b"}"
    if depth and isinstance(content, list) and content and isinstance(content[0], dict | list):
        return b"[" + b",".join([to_long_json(value, depth - 1) for value in content]) + b"]"
    return to_json(content)


async def until_gone(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """Return the result of `work`. If the client disconnects first, cancel it and return None."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await working


class EventStream(Response):
    """An ASGI response that sends each object of `chunks` as it comes.

    `close` is always called at the end: when all is sent, when the client has disconnected or has
    stopped reading, and after an error, which is sent as the last object. With `named`, the `type`
    of each object is the name of its event, and there is no [DONE].
    """

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        close: Callable[[], object],
        describe: Callable[[Exception], dict[str, Any]],
        named: bool = False,
    ) -> None:
        super().__init__()
        self._chunks = chunks
        self._close = close
        self._describe = describe
        self._named = named

    def _event(self, chunk: dict[str, Any]) -> bytes:
        name = f"event: {chunk.get('type', 'error')}\n" if self._named else ""
        return name.encode() + b"data: " + to_json(chunk) + b"\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timed_send(message: Message) -> None:
            await asyncio.wait_for(send(message), SEND_SECONDS)

        try:
            # A client that stops reading counts as disconnected.
            with suppress(TimeoutError, OSError):
                await unless_gone(receive, self._send_all(timed_send))
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._chunks:
                await send(
                    {"type": "http.response.body", "body": self._event(chunk), "more_body": True}
                )
        except (TimeoutError, OSError):
            raise
        except Exception as error:
            # A UserError is the client's, and the cause of Stopped is in the log already.
            if not isinstance(error, UserError | Stopped):
                logging.getLogger("seq2chat").exception(
                    "A stream ended with a mistake of the server."
                )
            body = self._event(self._describe(error))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        end = b"" if self._named else b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": end, "more_body": False})
