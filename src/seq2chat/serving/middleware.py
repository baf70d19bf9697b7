"""What every request passes first: the API key, the size of its body, and whether the server still
takes any."""

import hmac
import ipaddress
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seq2chat.config import check
from seq2chat.serving.sse import to_json

if TYPE_CHECKING:
    from seq2chat.serving.app import State

MOST_BYTES = 1_000_000  # of a body

# The page runs its own files only, talks to this server only, and is shown in no frame of others.
PAGE_POLICY = (
    b"default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src"
    b" 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OPEN = ("/", "/docs", "/health")
"""Routes that need no key, beside the files of the page: a page must be able to ask for the key."""

HEADERS = [
    (b"content-security-policy", PAGE_POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, state: "State", api_key: str) -> None:
        self.app, self.state = app, state
        self._expected = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        headers = dict(scope["headers"])
        if self._expected is None and not _names_this_machine(headers.get(b"host", b"localhost")):
            await refuse(
                guarded_send, 400, "Without an API key this server answers to localhost only.", None
            )
        elif self._expected is None and path not in OPEN and _is_foreign(headers):
            await refuse(
                guarded_send,
                403,
                "Pages of other sites may not use this server without an API key.",
                None,
            )
        elif not self._may_enter(path, headers.get(b"authorization", b"")):
            await refuse(
                guarded_send, 401, "Give the API key: Authorization: Bearer KEY.", "invalid_api_key"
            )
        elif self.state.draining and path != "/health":
            await refuse(guarded_send, 503, "The server is stopping.", None)
        else:
            await self.app(scope, _bounded(receive), guarded_send)

    def _may_enter(self, path: str, given: bytes) -> bool:
        """Whether the route is open, or the key is right."""
        if self._expected is None or path in OPEN or path.startswith("/web/"):
            return True
        return hmac.compare_digest(given, self._expected)


def _names_this_machine(host: bytes) -> bool:
    """Whether a Host header names the loopback. A page of others could let its own name point here,
    and then read what the browser keeps from it otherwise (DNS rebinding)."""
    text = host.decode("latin-1")
    return is_loopback(
        text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    )


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser sends this for a page of another site, which could keep the models busy
    without reading what they answer. Other programs send neither header."""
    origin = headers.get(b"origin")
    own = {scheme + headers.get(b"host", b"") for scheme in (b"http://", b"https://")}
    return headers.get(b"sec-fetch-site") == b"cross-site" or (
        origin is not None and origin not in own
    )


def _bounded(receive: Receive) -> Receive:
    """Return `receive`, which raises HTTPException once a body is larger than may be."""
    n_bytes = 0

    async def bounded() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > MOST_BYTES:
            raise HTTPException(400, f"The body is larger than {MOST_BYTES:,} bytes.")
        return message

    return bounded


async def refuse(send: Send, status: int, message: str, code: str | None) -> None:
    """Answer with an error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content: dict[str, Any] = {
        "error": {"message": message, "type": kind, "param": None, "code": code}
    }
    headers = [(b"content-type", b"application/json")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers += [(b"retry-after", b"5")] if status == 503 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": to_json(content)})


def check_key(api_key: str) -> None:
    """Raise UserError for a key that a browser cannot send as a header."""
    check(
        api_key.isascii() and api_key.isprintable() and api_key == api_key.strip(),
        "The API key has characters that a browser cannot send; write letters without accents, "
        "digits and signs.",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
