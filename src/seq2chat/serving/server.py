"""Runs the server. On SIGTERM or Ctrl-C it finishes running answers first."""

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
from seq2chat.serving.engine_thread import EngineThread
from seq2chat.serving.middleware import HEADERS, refuse
from seq2chat.serving.page import PAGES, page_file
from seq2chat.serving.served_model import ServedModel
from seq2chat.serving.timeouts import TimedProtocol
from seq2chat.training.run_folder import RunFolder

DRAIN_SECONDS = 30  # to finish running answers
LOADING_FILES = ("/web/style.css", "/web/theme.js", "/web/icon.svg")  # of the page while loading


class LoadingApp:
    """The ASGI application for uvicorn: answers 503 until the models are loaded, then runs `app`.

    `error` is the exception that ended loading or serving.
    """

    def __init__(self) -> None:
        self.app: FastAPI | None = None
        self.error: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
        else:
            await _loading(scope, receive, send)


async def _loading(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a browser with a page that reloads itself, and a program with an error."""
    path = scope.get("path", "")
    accept = dict(scope.get("headers", ())).get(b"accept", b"")
    if path in PAGES and b"text/html" in accept:
        response = page_file("loading.html", 503)
    elif path in LOADING_FILES:
        response = page_file(path.removeprefix("/web/"))
    else:
        await refuse(send, 503, "The server is loading its models.", None)
        return
    for name, value in HEADERS:
        response.headers[name.decode()] = value.decode()
    await response(scope, receive, send)


class Server(uvicorn.Server):
    """uvicorn's server, but refusing new requests after the first signal."""

    def __init__(self, config: uvicorn.Config, loading_app: LoadingApp) -> None:
        super().__init__(config)
        self.loading_app = loading_app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish running answers after the first signal, and exit at once after a second."""
        if self.loading_app.app is not None:
            self.loading_app.app.state.serving.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True


def run_server(
    load: Callable[[], Sequence[ServedModel]],
    host: str,
    port: int,
    api_key: str,
    on_ready: Callable[[str], object],
    runs: Sequence[RunFolder] = (),
) -> None:
    """Serve the models that `load` returns, and the training of `runs`, until a signal comes.

    `on_ready` is called with the address once the models are loaded. Raises what `load` raises,
    UserError for an address that cannot be bound, and SystemExit if engines break again and again.
    """
    listener = listen(host, port)
    loading_app = LoadingApp()
    # Requests are not logged, because the texts that people send to a model are private.
    config = uvicorn.Config(
        loading_app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=30,
        http=TimedProtocol,
        h11_max_incomplete_event_size=64 * 1024,
        server_header=False,
    )
    server = Server(config, loading_app)
    engine_threads: list[EngineThread] = []
    url_host = f"[{host}]" if ":" in host else host

    def load_and_run() -> None:
        try:
            models = load()
            engine_thread = EngineThread(
                [model.engine for model in models if model.engine is not None]
            )
            engine_threads.append(engine_thread)
            engine_thread.start()
            # Reading a large body starts garbage collections. Each would stop all threads to go
            # through the libraries and models again, so exclude these.
            gc.collect()
            gc.freeze()
            loading_app.app = create_app(models, engine_thread, api_key, runs)
            on_ready(f"http://{url_host}:{listener.getsockname()[1]}")
            engine_thread.join()
            if engine_thread.error is not None:
                raise SystemExit(1)  # the log has the cause; a supervisor can restart the server
        except BaseException as error:  # raised below, in the caller's thread
            loading_app.error = error
            server.should_exit = True

    threading.Thread(target=load_and_run, name="loading", daemon=True).start()
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        for engine_thread in engine_threads:
            engine_thread.stop()
            engine_thread.join(timeout=DRAIN_SECONDS)
    if loading_app.error is not None:
        raise loading_app.error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address. Raises UserError if that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    # UnicodeError is for a host name with a label of more than 63 letters.
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Cannot listen at {host}:{port} ({reason}); give another port, or 0 for a free one."
        ) from None
    return listener
