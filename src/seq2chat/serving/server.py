"""From models to a listening server, and its end: on SIGTERM or Ctrl-C running answers are finished
first."""

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from seq2chat.config import UserError
from seq2chat.serving.app import create_app
from seq2chat.serving.engine_thread import Worker
from seq2chat.serving.middleware import refuse
from seq2chat.serving.served_model import Served
from seq2chat.serving.timeouts import TimedProtocol

DRAIN_SECONDS = 30  # that running answers have at the end


class Opening:
    """The application as uvicorn sees it: `app` once the models are loaded, 503 before. `error` is
    why they are not."""

    def __init__(self) -> None:
        self.app: FastAPI | None = None
        self.error: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
        else:
            await refuse(send, 503, "The server is loading its models.", None)


class Server(uvicorn.Server):
    """uvicorn's server, which takes no new request once it is asked to end, and then ends as it
    should."""

    def __init__(self, config: uvicorn.Config, opening: Opening) -> None:
        super().__init__(config)
        self.opening = opening

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let running answers come to their end; a second signal does not."""
        if self.opening.app is not None:
            self.opening.app.state.serving.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True


def run_server(
    load: Callable[[], Sequence[Served]],
    host: str,
    port: int,
    api_key: str,
    say: Callable[[str], object],
) -> None:
    """Serve what `load` returns until a signal comes. `say` is told the address once that is
    loaded. Raises what `load` does, UserError for an address that cannot be listened at, and
    SystemExit when an engine breaks again and again."""
    listener, opening = listen(host, port), Opening()
    # Requests are not logged: what people write to a model is theirs.
    config = uvicorn.Config(
        opening,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=30,
        http=TimedProtocol,
        h11_max_incomplete_event_size=64 * 1024,
        server_header=False,
    )
    server, workers = Server(config, opening), list[Worker]()
    shown = f"[{host}]" if ":" in host else host

    def open_models() -> None:
        try:
            served = load()
            workers.append(
                worker := Worker([one.engine for one in served if one.engine is not None])
            )
            worker.start()
            # Reading a large body starts garbage collections, each of which would stop all threads
            # to go through the libraries and models once more.
            gc.collect()
            gc.freeze()
            opening.app = create_app(served, worker, api_key)
            say(f"http://{shown}:{listener.getsockname()[1]}")
            worker.join()
            if worker.error is not None:
                raise SystemExit(1)  # the log has the cause; a supervisor starts the server again
        except BaseException as error:  # raised where the caller can see it
            opening.error, server.should_exit = error, True

    threading.Thread(target=open_models, name="loading", daemon=True).start()
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        for worker in workers:
            worker.stop()
            worker.join(timeout=DRAIN_SECONDS)
    if opening.error is not None:
        raise opening.error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address. Raises UserError if that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    # A name with a label of more than 63 letters is the second kind.
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Cannot listen at {host}:{port} ({reason}); give another port, or 0 for a free one."
        ) from None
    return listener
