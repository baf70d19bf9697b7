"""Server-sent events: a stream of JSON objects that ends with `[DONE]`, and what ends it early."""

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

PATIENCE = 60.0  # seconds in which a client must take what it is sent


def to_json(content: Any) -> bytes:
    """Return `content` as JSON in ASCII, which even half a surrogate pair survives."""
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def to_long_json(content: Any, depth: int = 5) -> bytes:
    """Return the bytes of `to_json` for an answer of any length, made in small steps.

    One call of `json.dumps` keeps all other threads waiting until its end.
    """
    if depth and isinstance(content, dict):
        parts = [
            to_json(key) + b":" + to_long_json(value, depth - 1) for key, value in content.items()
        ]
        return b"{" + b",".join(parts) + b"}"
    if depth and isinstance(content, list) and content and isinstance(content[0], dict | list):
        return b"[" + b",".join([to_long_json(value, depth - 1) for value in content]) + b"]"
    return to_json(content)


async def until_gone(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """Return the result of `work`, or None when the client goes before it is done; `work` is then
    cancelled."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(receive))
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

    `close` is called at the end, however it comes: all sent, the client gone or too slow to take
    anything, or an error, which is sent as an object of its own. With `named`, each object is an
    event of its `type`, and there is no [DONE].
    """

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        close: Callable[[], object],
        describe: Callable[[Exception], dict[str, Any]],
        named: bool = False,
    ) -> None:
        super().__init__()
        self._chunks, self._close, self._describe, self._named = chunks, close, describe, named

    def _event(self, chunk: dict[str, Any]) -> bytes:
        name = f"event: {chunk.get('type', 'error')}\n" if self._named else ""
        return name.encode() + b"data: " + to_json(chunk) + b"\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            await asyncio.wait_for(send(message), PATIENCE)

        try:
            # A client that takes nothing is as good as gone.
            with suppress(TimeoutError, OSError):
                await unless_gone(receive, self._send_all(say))
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
            # The first are the client's, the last is in the log already.
            if not isinstance(error, UserError | Stopped):
                logging.getLogger("seq2chat").exception(
                    "A stream ended with a mistake of the server."
                )
            body = self._event(self._describe(error))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        end = b"" if self._named else b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": end, "more_body": False})
