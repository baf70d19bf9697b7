"""The web server: routes, errors in OpenAI's form, and who may come in."""

import asyncio
from collections.abc import Sequence
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from seq2chat import __version__
from seq2chat.config import UserError, check
from seq2chat.generation.request import DeadlinePassed, QueueFull
from seq2chat.serving import chat, completion, embedding, protocol
from seq2chat.serving.answer import BadField, in_time
from seq2chat.serving.guard import Guard
from seq2chat.serving.metrics import Metrics
from seq2chat.serving.served import Served
from seq2chat.serving.stream import EventStream, to_json, unless_gone
from seq2chat.serving.worker import Stopped, Worker
from seq2chat.text.chat import chat_tokens
from seq2chat.text.tokenizer import Tokenizer
from seq2chat.text.wordpiece import check_ids

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""The files of the page that are served, and as what."""


class Unknown(Exception):
    """There is no model of that name."""


class State:
    """What the routes share."""

    def __init__(self, served: Sequence[Served], worker: Worker) -> None:
        self.served = {one.id: one for one in served}
        self.worker, self.metrics = worker, Metrics()
        self.draining = False

    def find(self, name: str) -> Served:
        """Return the model of that name. Raises Unknown."""
        if name not in self.served:
            raise Unknown(f"There is no model {name[:100]!r} here; there are {', '.join(self.served)}.")
        return self.served[name]


def create_app(served: Sequence[Served], worker: Worker, api_key: str = "") -> FastAPI:
    """Return the application that serves these models; `worker` must be running. With an `api_key`, clients need it."""
    state = State(served, worker)

    app = FastAPI(
        title="seq2chat", version=__version__, docs_url=None, redoc_url=None,
        description="An OpenAI-compatible API for the models of seq2chat's runs.",
    )  # fmt: skip
    app.state.serving = state
    app.add_middleware(Guard, state=state, api_key=api_key)
    for kind in (UserError, Unknown, Stopped, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _on_error)
    _add_page(app)
    _add_routes(app, state)
    return app


def _add_routes(app: FastAPI, state: State) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Whether requests are taken."""
        if state.draining or state.worker.error is not None or not state.worker.is_alive():
            raise Stopped("The server is stopping." if state.draining else "The engine is not running.")
        return respond({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """What the server measures of itself, for Prometheus."""
        return Response(state.metrics.text(list(state.served.values())), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Response:
        """The models there are."""
        return respond({"object": "list", "data": [one.card() for one in state.served.values()]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        """One model."""
        return respond(state.find(name).card())

    @app.post("/v1/chat/completions")
    async def chat_completions(asked: protocol.ChatRequest, request: Request) -> Response:
        """The assistant's next message, whole or as a stream of server-sent events."""
        # Long texts are encoded in a thread: meanwhile others are answered.
        answer = await asyncio.to_thread(chat.chat_answer, asked, state.find(asked.model), salt(request))
        answer.submit(state.worker, state.metrics)
        if asked.stream:
            return EventStream(chat.chunks(asked, answer), answer.abort, describe)
        try:
            made = await unless_gone(request.receive, chat.whole(asked, answer))
        finally:
            answer.abort()
        return respond(made)

    @app.post("/v1/completions")
    async def completions(asked: protocol.CompletionRequest, request: Request) -> Response:
        """Texts that go on, the scores of texts as they are, or translations."""
        served = state.find(asked.model)
        if served.family in ("seq2seq", "transformer"):
            work = in_time(completion.translation(asked, served, state.worker))
            made = await unless_gone(request.receive, work)
            if made is not None and asked.stream:
                return EventStream(completion.translation_chunks(asked, made), lambda: None, describe)
            return respond(made)
        answers = await asyncio.to_thread(completion.completion_answers, asked, served, salt(request))

        def abort() -> None:
            for answer in answers:
                answer.abort()

        for answer in answers:
            try:
                answer.submit(state.worker, state.metrics)
            except BaseException:
                abort()
                raise
        if asked.stream:
            return EventStream(completion.chunks(asked, answers), abort, describe)
        try:
            made = await unless_gone(request.receive, completion.whole(asked, answers))
        finally:
            abort()
        return respond(made)

    @app.post("/v1/embeddings")
    async def embeddings(asked: protocol.EmbeddingRequest, request: Request) -> Response:
        """Texts as vectors of length 1."""
        work = in_time(embedding.whole(asked, state.find(asked.model), state.worker))
        return respond(await unless_gone(request.receive, work))

    @app.post("/tokenize")
    async def tokenize(asked: protocol.TokenizeRequest) -> Response:
        """The tokens of a text or of a conversation, with the role of each."""
        return await asyncio.to_thread(_tokenized, asked, state.find(asked.model))

    @app.post("/detokenize")
    async def detokenize(asked: protocol.DetokenizeRequest) -> Response:
        """The text of tokens, control tokens by name."""
        tokenizer = state.find(asked.model).tokenizer
        check_ids(tokenizer, asked.tokens)
        return respond({"prompt": tokenizer.decode(asked.tokens)})


def _tokenized(asked: protocol.TokenizeRequest, served: Served) -> Response:
    if (asked.prompt is None) == (asked.messages is None):
        raise BadField("prompt", "Give prompt or messages, one of them.")
    if asked.add_generation_prompt is not None and asked.messages is None:
        raise BadField("add_generation_prompt", "add_generation_prompt is for messages.")
    roles: list[str] | None = None
    if asked.messages is not None:
        tokenizer = served.tokenizer
        check(isinstance(tokenizer, Tokenizer), f"{served.id} does not chat; send prompt.")
        assert isinstance(tokenizer, Tokenizer)
        reply = asked.add_generation_prompt is not False
        told = chat_tokens(tokenizer, chat.conversation(asked.messages), reply)
        ids, roles = told.ids, told.roles
    else:
        ids = served.tokenizer.encode(asked.prompt or "")
    pieces = [served.tokenizer.decode([i]) for i in ids]
    return respond(
        {"count": len(ids), "max_model_len": served.context, "tokens": ids, "token_strs": pieces, "roles": roles}
    )


def salt(request: Request) -> str:
    """Return what separates the prompts of one key in the cache from those of others."""
    return request.headers.get("authorization", "")


def respond(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response of JSON."""
    return Response(to_json(content), status, headers, media_type="application/json")


def describe(error: Exception) -> dict[str, Any]:
    """Return an error in OpenAI's form. What is not meant for clients is not told."""
    param = error.param if isinstance(error, BadField) else None
    kind, message = "invalid_request_error", str(error)
    match error:
        case QueueFull():
            kind = "rate_limit_error"
        case Stopped() | DeadlinePassed():
            kind = "server_error"
        case UserError() | Unknown() | HTTPException() | RequestValidationError():
            pass
        case _:
            kind, message = "server_error", "The server made a mistake."
    code = "model_not_found" if isinstance(error, Unknown) else None
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _on_error(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            return respond(describe(_first(error)), 400)
        case HTTPException():
            return respond({"error": describe(error)["error"] | {"message": str(error.detail)}}, error.status_code)
        case QueueFull():
            return respond(describe(error), 429, {"retry-after": "1"})
        case Stopped():
            return respond(describe(error), 503, {"retry-after": "5"})
        case DeadlinePassed():
            return respond(describe(error), 504)
        case Unknown():
            return respond(describe(error), 404)
        case UserError():
            return respond(describe(error), 400)
    return respond(describe(error), 500)


def _first(error: RequestValidationError) -> BadField:
    """Return the first thing that is wrong with a body."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "extra_forbidden":
        return BadField(".".join(where), f"{'.'.join(where)[:100]} is not supported; leave it out.")
    if not where or first["type"] == "json_invalid":
        return BadField("", f"The body is no request in JSON: {first['msg']}.")
    return BadField(".".join(where), f"{'.'.join(where)[:100]}: {first['msg']}.")


def _add_page(app: FastAPI) -> None:
    def page(name: str) -> Response:
        # No path is made of what a client writes: on some systems a drive or a device is one.
        kind = next((kind for ending, kind in KINDS.items() if name.endswith(ending)), None)
        files = resources.files("seq2chat.serving").joinpath("web").iterdir()
        file = next((file for file in files if file.name == name), None)
        if kind is None or file is None:
            raise HTTPException(404, "There is no such page.")
        return Response(file.read_bytes(), media_type=f"{kind}; charset=utf-8", headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.get("/web/{name:path}", include_in_schema=False)
    async def web(name: str) -> Response:
        return page(name)
