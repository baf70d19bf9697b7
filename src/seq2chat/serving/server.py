"""From models to a listening server, and its end: on SIGTERM or Ctrl-C running answers are finished first."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from seq2chat.config import UserError
from seq2chat.serving.app import State, create_app
from seq2chat.serving.served import Served
from seq2chat.serving.worker import Worker

DRAIN_SECONDS = 30  # that running answers have at the end


class Server(uvicorn.Server):
    """uvicorn's server, which takes no new request once it is asked to end, and then ends as it should."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let running answers come to their end; a second signal does not."""
        self.state.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True


def run_server(served: Sequence[Served], host: str, port: int, api_key: str, say: Callable[[str], object]) -> None:
    """Serve until a signal comes. `say` is told the address. Raises UserError for one that cannot be listened at."""
    listener = listen(host, port)
    worker = Worker([one.engine for one in served if one.engine is not None])
    app = create_app(served, worker, api_key)
    # Requests are not logged: what people write to a model is theirs.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS, timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024, server_header=False,
    )  # fmt: skip
    worker.start()
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{listener.getsockname()[1]}")
    try:
        asyncio.run(Server(config, app.state.serving).serve(sockets=[listener]))
    finally:
        worker.stop()
        worker.join(timeout=DRAIN_SECONDS)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address. Raises UserError if that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:  # a name with a label of more than 63 letters is the second kind
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Cannot listen at {host}:{port} ({reason}); give another --port, or 0 for a free one."
        ) from None
    return listener
