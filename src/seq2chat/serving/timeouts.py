"""HTTP connections with a deadline per request, which also binds clients without a key."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 30.0  # for the headers of a request, and again for its body
MAX_CONNECTIONS = 512

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after:"
    b' 5\r\nconnection: close\r\n\r\n{"error":{"message":"The server has too many connections; try'
    b' again later.","type":"server_error","param":null,"code":null}}'
)


class TimedProtocol(H11Protocol):
    """HTTP on one connection.

    The connection is closed when the headers or the body of a request take longer than
    REQUEST_SECONDS.
    """

    _timer: asyncio.TimerHandle | None = None
    # h11's state for the part of a request that the timer waits for.
    _timed: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(FULL)
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Run the timer while the client has to send something."""
        state = self.conn.their_state
        if state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_timer()
        elif self._timer is None or state is not self._timed:
            self._stop_timer()
            self._timed = state
            self._timer = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
