"""The web server: its routes, and what they share."""

from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from seq2chat import __version__
from seq2chat.config import UserError, check
from seq2chat.serving import chat, completion, embedding, protocol, responses
from seq2chat.serving.answer import Answer, BadField, in_time
from seq2chat.serving.body import JSONRoute
from seq2chat.serving.engine_thread import Stopped, Worker
from seq2chat.serving.errors import UnknownModel, describe, on_error, respond
from seq2chat.serving.metrics import Metrics
from seq2chat.serving.middleware import Guard
from seq2chat.serving.pool import Pool
from seq2chat.serving.served_model import Served
from seq2chat.serving.sse import EventStream, to_long_json, unless_gone
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import chat_tokens
from seq2chat.text.tokenizers import check_ids

T = TypeVar("T")

KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""The files of the page that are served, and as what."""


class State:
    """The state that the routes share. Each kind of work beside the event loop has threads of its
    own."""

    def __init__(self, served: Sequence[Served], worker: Worker) -> None:
        self.served = {one.id: one for one in served}
        self.worker, self.metrics = worker, Metrics()
        self.draining = False
        self.encoding = Pool("encoding", 2)  # texts that a model is to read
        # Texts of which the tokens alone are wanted.
        self.counting = Pool("counting", 1, most_waiting=64)
        # Answers to JSON, which have cost too much to be refused.
        self.writing = Pool("writing", 1, most_waiting=None)

    def find(self, name: str) -> Served:
        """Return the model of that name. Raises UnknownModel."""
        if name not in self.served:
            raise UnknownModel(
                f"There is no model {name[:100]!r} here; there are {', '.join(self.served)}."
            )
        return self.served[name]

    async def written(self, make: Callable[[], Any]) -> Response:
        """Return the response of what `make` returns, made and written beside the event loop."""
        body = await self.writing.run(lambda: to_long_json(make()))
        return Response(body, media_type="application/json")


def create_app(served: Sequence[Served], worker: Worker, api_key: str = "") -> FastAPI:
    """Return the application that serves these models; `worker` must be running. With an `api_key`,
    clients need it."""
    state = State(served, worker)

    app = FastAPI(
        title="seq2chat",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        description="An OpenAI-compatible API for the models of seq2chat's runs.",
    )
    app.state.serving = state
    app.router.route_class = JSONRoute
    app.add_middleware(Guard, state=state, api_key=api_key)
    for kind in (
        UserError,
        UnknownModel,
        Stopped,
        HTTPException,
        RequestValidationError,
        Exception,
    ):
        app.add_exception_handler(kind, on_error)
    _add_page(app)
    _add_routes(app, state)
    return app


async def while_wanted(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`. Raises DeadlinePassed in its time, and Stopped when the client
    has gone; `work` is then cancelled."""
    made = await unless_gone(request.receive, in_time(work))
    if made is None:
        raise Stopped("The client has gone.")
    return made


def _add_routes(app: FastAPI, state: State) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Whether requests are taken."""
        if state.draining or state.worker.error is not None or not state.worker.is_alive():
            raise Stopped(
                "The server is stopping." if state.draining else "The engine is not running."
            )
        return respond({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """What the server measures of itself, for Prometheus."""
        return Response(
            state.metrics.text(list(state.served.values())), media_type="text/plain; version=0.0.4"
        )

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
        answer = await begin_chat(asked, request)
        if asked.stream:
            return EventStream(chat.chunks(asked, answer), answer.abort, describe)
        [samples] = await all_pieces(request, [answer])
        return await state.written(lambda: chat.whole(asked, answer, samples))

    @app.post("/v1/responses")
    async def create_response(asked: protocol.ResponsesRequest, request: Request) -> Response:
        """The assistant's next message in OpenAI's newer form, whole or as a stream of events."""
        answer = await begin_chat(responses.as_chat(asked), request)
        if asked.stream:
            return EventStream(responses.events(asked, answer), answer.abort, describe, named=True)
        [samples] = await all_pieces(request, [answer])
        return await state.written(lambda: responses.whole(asked, answer, samples))

    @app.post("/v1/completions")
    async def completions(asked: protocol.CompletionRequest, request: Request) -> Response:
        """Texts that go on, the scores of texts as they are, or translations."""
        served = state.find(asked.model)
        if served.family in ("seq2seq", "transformer"):
            work = completion.translation(asked, served, state.worker, state.encoding)
            made = await while_wanted(request, work)
            if asked.stream:
                return EventStream(
                    completion.translation_chunks(asked, made), lambda: None, describe
                )
            return respond(made)
        key = salt(request)
        work = state.encoding.run(lambda: completion.completion_answers(asked, served, key))
        answers = await while_wanted(request, work)
        begin(answers)
        if asked.stream:
            return EventStream(completion.chunks(asked, answers), lambda: abort(answers), describe)
        pieces = await all_pieces(request, answers)
        return await state.written(lambda: completion.whole(asked, answers, pieces))

    async def begin_chat(asked: protocol.ChatRequest, request: Request) -> Answer:
        """Return the answer, which the engine has begun to make."""
        served, key = state.find(asked.model), salt(request)
        answer = await while_wanted(
            request, state.encoding.run(lambda: chat.chat_answer(asked, served, key))
        )
        begin([answer])
        return answer

    def begin(answers: Sequence[Answer]) -> None:
        """Hand the answers to the engine: all, or none where one is refused."""
        for answer in answers:
            try:
                answer.submit(state.worker, state.metrics)
            except BaseException:
                abort(answers)
                raise

    @app.post("/v1/embeddings")
    async def embeddings(asked: protocol.EmbeddingRequest, request: Request) -> Response:
        """Texts as vectors of length 1."""
        served = state.find(asked.model)
        texts = await while_wanted(
            request, state.encoding.run(lambda: embedding.inputs(asked, served))
        )
        vectors = await while_wanted(request, embedding.vectors(served, texts, state.worker))
        return await state.written(lambda: embedding.response(asked, texts, vectors))

    @app.post("/tokenize")
    async def tokenize(asked: protocol.TokenizeRequest, request: Request) -> Response:
        """The tokens of a text or of a conversation, with the role of each."""
        served = state.find(asked.model)
        body = await while_wanted(
            request, state.counting.run(lambda: to_long_json(_tokenized(asked, served)))
        )
        return Response(body, media_type="application/json")

    @app.post("/detokenize")
    async def detokenize(asked: protocol.DetokenizeRequest, request: Request) -> Response:
        """The text of tokens, control tokens by name."""
        tokenizer = state.find(asked.model).tokenizer
        check_ids(tokenizer, asked.tokens)
        text = await while_wanted(
            request, state.counting.run(lambda: tokenizer.decode(asked.tokens))
        )
        return respond({"prompt": text})


def abort(answers: Sequence[Answer]) -> None:
    """Free the slots of the answers."""
    for answer in answers:
        answer.abort()


async def all_pieces(request: Request, answers: Sequence[Answer]) -> list[Any]:
    """Return the pieces of each sample of each answer, once all are complete. However it ends, the
    slots are free."""

    async def wait() -> list[Any]:
        return [await answer.wait() for answer in answers]

    try:
        return await while_wanted(request, wait())
    finally:
        abort(answers)


def _tokenized(asked: protocol.TokenizeRequest, served: Served) -> dict[str, Any]:
    if (asked.prompt is None) == (asked.messages is None):
        raise BadField("prompt", "Give prompt or messages, one of them.")
    if asked.add_generation_prompt is not None and asked.messages is None:
        raise BadField("add_generation_prompt", "add_generation_prompt is for messages.")
    roles: list[str] | None = None
    if asked.messages is not None:
        tokenizer = served.tokenizer
        check(isinstance(tokenizer, ByteBPE), f"{served.id} does not chat; send prompt.")
        assert isinstance(tokenizer, ByteBPE)
        reply = asked.add_generation_prompt is not False
        messages = chat.conversation(asked.messages)
        served.check_size(*(message.content for message in messages))
        read = chat_tokens(tokenizer, messages, reply)
        ids, roles = read.ids, read.roles
    else:
        served.check_size(asked.prompt or "")
        ids = served.tokenizer.encode(asked.prompt or "")
    pieces = [served.tokenizer.decode([i]) for i in ids]
    return {
        "count": len(ids),
        "max_model_len": served.context,
        "tokens": ids,
        "token_strs": pieces,
        "roles": roles,
    }


def salt(request: Request) -> str:
    """Return what separates the prompts of one key in the cache from those of others."""
    return request.headers.get("authorization", "")


def _add_page(app: FastAPI) -> None:
    def page(name: str) -> Response:
        # No path is made of what a client writes: on some systems a drive or a device is one.
        kind = next((kind for ending, kind in KINDS.items() if name.endswith(ending)), None)
        files = resources.files("seq2chat.serving").joinpath("web").iterdir()
        file = next((file for file in files if file.name == name), None)
        if kind is None or file is None:
            raise HTTPException(404, "There is no such page.")
        return Response(
            file.read_bytes(),
            media_type=f"{kind}; charset=utf-8",
            headers={"cache-control": "no-cache"},
        )

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> Response:
        return page("index.html")

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.api_route("/web/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def web(name: str) -> Response:
        return page(name)
