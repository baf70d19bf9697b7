"""Checks that every request passes first.

They concern the host, the API key, the size of the body, and if the server still takes requests.
"""

import hmac
import ipaddress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seq2chat.config import check
from seq2chat.serving.page import PAGES
from seq2chat.serving.sse import to_json
from seq2chat.serving.state import ServerState

MAX_BODY_BYTES = 1_000_000

# The page runs only its own files, connects only to this server, and no other page may frame it.
PAGE_POLICY = (
    b"default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src"
    b" 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OPEN_PATHS = (*PAGES, "/health")
"""Routes that need no key. Neither do the files of the page, which must load to ask for the key."""

HEADERS = [
    (b"content-security-policy", PAGE_POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class AccessMiddleware:
    """ASGI middleware that refuses requests, see the module."""

    def __init__(self, app: ASGIApp, state: ServerState, api_key: str) -> None:
        self.app = app
        self.state = state
        self._expected = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        refusal = self._refusal(scope["path"], dict(scope["headers"]))
        if refusal is None:
            await self.app(scope, _bounded(receive), send_with_headers)
        else:
            await refuse(send_with_headers, *refusal)

    def _refusal(
        self, path: str, headers: dict[bytes, bytes]
    ) -> tuple[int, str, str | None] | None:
        """Return status, message and code of the refusal, or None if the request may pass."""
        if self._expected is None:
            if not _is_local_host(headers.get(b"host", b"localhost")):
                return 400, "Without an API key this server answers to localhost only.", None
            if path not in OPEN_PATHS and _is_foreign(headers):
                return (
                    403,
                    "Pages of other sites may not use this server without an API key.",
                    None,
                )
        elif not self._is_allowed(path, headers.get(b"authorization", b"")):
            return 401, "Give the API key: Authorization: Bearer KEY.", "invalid_api_key"
        if self.state.draining and path != "/health":
            return 503, "The server is stopping.", None
        return None

    def _is_allowed(self, path: str, authorization: bytes) -> bool:
        """Return True if the route is open or the key is right."""
        if self._expected is None or path in OPEN_PATHS or path.startswith("/web/"):
            return True
        return hmac.compare_digest(authorization, self._expected)


def _is_local_host(host: bytes) -> bool:
    """Return True if a Host header names the loopback.

    Another site could point its own name at this machine, and then read the answers, which the
    browser would otherwise keep from it (DNS rebinding).
    """
    text = host.decode("latin-1")
    if text.startswith("["):  # IPv6
        return is_loopback(text[1:].partition("]")[0])
    return is_loopback(text.partition(":")[0])


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Return True if a browser sends the request for a page of another site.

    Such a page cannot read the answers, but it could keep the models busy. Programs other than
    browsers send neither of these headers.
    """
    origin = headers.get(b"origin")
    own = {scheme + headers.get(b"host", b"") for scheme in (b"http://", b"https://")}
    return headers.get(b"sec-fetch-site") == b"cross-site" or (
        origin is not None and origin not in own
    )


def _bounded(receive: Receive) -> Receive:
    """Return a `receive` that raises HTTPException when the body exceeds MAX_BODY_BYTES."""
    n_bytes = 0

    async def bounded() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > MAX_BODY_BYTES:
            raise HTTPException(400, f"The body is larger than {MAX_BODY_BYTES:,} bytes.")
        return message

    return bounded


async def refuse(send: Send, status: int, message: str, code: str | None) -> None:
    """Send an error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content: dict[str, Any] = {
        "error": {"message": message, "type": kind, "param": None, "code": code}
    }
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", b"5"))
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
    """Return True if only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
