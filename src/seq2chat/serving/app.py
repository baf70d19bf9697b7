"""The web application and its routes."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from seq2chat import __version__
from seq2chat.config import UserError, check
from seq2chat.generation.tokens import Token
from seq2chat.serving import chat, completion, embedding, protocol, responses, translation
from seq2chat.serving.answer import Answer, BadField, while_wanted
from seq2chat.serving.body import JSONRoute
from seq2chat.serving.engine_thread import EngineThread, Stopped
from seq2chat.serving.errors import (
    UnknownModel,
    UnknownRun,
    UnknownTrace,
    describe,
    on_error,
    respond,
)
from seq2chat.serving.middleware import AccessMiddleware
from seq2chat.serving.page import PAGES, page_file
from seq2chat.serving.responses_protocol import ResponsesRequest
from seq2chat.serving.run_routes import add_run_routes
from seq2chat.serving.served_model import ServedModel
from seq2chat.serving.sse import EventStream, to_long_json
from seq2chat.serving.state import ServerState
from seq2chat.serving.trace_protocol import TensorQuery, TraceRequest
from seq2chat.serving.tracing import Tracer
from seq2chat.text.chat import chat_tokens
from seq2chat.text.merges import merge_steps
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import check_ids
from seq2chat.training.run_folder import RunFolder

MAX_MERGED = 1000  # characters of a text whose merges are shown
MAX_PIECE = 200  # bytes of a piece, whose steps take space with the square of its length


def create_app(
    models: Sequence[ServedModel],
    engine_thread: EngineThread,
    api_key: str = "",
    runs: Sequence[RunFolder] = (),
) -> FastAPI:
    """Return the application that serves `models` and shows the training of `runs`.

    The engine thread must be running. With an `api_key`, clients must send it.
    """
    state = ServerState(models, engine_thread, runs)
    app = FastAPI(
        title="seq2chat",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        description="An OpenAI-compatible API for the models of seq2chat's runs.",
    )
    app.state.serving = state
    app.router.route_class = JSONRoute
    app.add_middleware(AccessMiddleware, state=state, api_key=api_key)
    for kind in (
        UserError,
        UnknownModel,
        UnknownTrace,
        UnknownRun,
        Stopped,
        HTTPException,
        RequestValidationError,
        Exception,
    ):
        app.add_exception_handler(kind, on_error)
    _add_pages(app, has_models=bool(models))
    add_run_routes(app, state)
    routes = Routes(state)
    for path, get in (
        ("/health", routes.health),
        ("/metrics", routes.metrics),
        ("/v1/models", routes.models),
        ("/v1/models/{name}", routes.model),
        ("/api/traces/{trace_id}/tensor", routes.trace_tensor),
    ):
        app.add_api_route(path, get, methods=["GET"])
    for path, post in (
        ("/v1/chat/completions", routes.chat_completions),
        ("/v1/responses", routes.create_response),
        ("/v1/completions", routes.completions),
        ("/v1/embeddings", routes.embeddings),
        ("/tokenize", routes.tokenize),
        ("/detokenize", routes.detokenize),
        ("/api/traces", routes.create_trace),
    ):
        app.add_api_route(path, post, methods=["POST"])
    return app


class Routes:
    """The handlers of the API. Their docstrings are the descriptions in its OpenAPI schema."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def health(self) -> Response:
        """Return 200 while the server accepts requests, else 503."""
        state = self._state
        if state.draining:
            raise Stopped("The server is stopping.")
        if state.engine_thread.error is not None or not state.engine_thread.is_alive():
            raise Stopped("The engine is not running.")
        return respond({"status": "ok"})

    async def metrics(self) -> Response:
        """Return the server's metrics in Prometheus' text format."""
        text = self._state.metrics.text(list(self._state.models.values()))
        return Response(text, media_type="text/plain; version=0.0.4")

    async def models(self) -> Response:
        """List the models."""
        cards = [model.card() for model in self._state.models.values()]
        return respond({"object": "list", "data": cards})

    async def model(self, name: str) -> Response:
        """Return one model."""
        return respond(self._state.find(name).card())

    async def chat_completions(self, body: protocol.ChatRequest, request: Request) -> Response:
        """Write the assistant's next message, whole or as a stream of server-sent events."""
        answer = await self._begin_chat(body, request)
        if body.stream:
            return EventStream(chat.chunks(body, answer), answer.abort, describe)
        [samples] = await all_samples(request, [answer])
        return await self._state.json_response(lambda: chat.response(body, answer, samples))

    async def create_response(self, body: ResponsesRequest, request: Request) -> Response:
        """Write the assistant's next message in OpenAI's newer form, whole or as a stream."""
        answer = await self._begin_chat(responses.as_chat(body), request)
        if body.stream:
            return EventStream(responses.events(body, answer), answer.abort, describe, named=True)
        [samples] = await all_samples(request, [answer])
        return await self._state.json_response(lambda: responses.response(body, answer, samples))

    async def completions(self, body: protocol.CompletionRequest, request: Request) -> Response:
        """Continue, score or translate texts."""
        state = self._state
        model = state.find(body.model)
        if model.family in ("seq2seq", "transformer"):
            work = translation.response(body, model, state.engine_thread, state.encoding)
            content = await while_wanted(request, work)
            if body.stream:
                return EventStream(translation.chunks(body, content), lambda: None, describe)
            return respond(content)
        salt = cache_salt(request)
        answers = await while_wanted(
            request,
            state.encoding.run(lambda: completion.completion_answers(body, model, salt)),
        )
        self._submit(answers)
        if body.stream:
            return EventStream(completion.chunks(body, answers), lambda: abort(answers), describe)
        samples = await all_samples(request, answers)
        return await state.json_response(lambda: completion.response(body, answers, samples))

    async def embeddings(self, body: protocol.EmbeddingRequest, request: Request) -> Response:
        """Return texts as vectors of length 1."""
        state = self._state
        model = state.find(body.model)
        texts = await while_wanted(
            request, state.encoding.run(lambda: embedding.inputs(body, model))
        )
        vectors = await while_wanted(request, embedding.vectors(model, texts, state.engine_thread))
        return await state.json_response(lambda: embedding.response(body, texts, vectors))

    async def tokenize(self, body: protocol.TokenizeRequest, request: Request) -> Response:
        """Return the tokens of a text or of a conversation, with the role of each."""
        model = self._state.find(body.model)
        content = await while_wanted(
            request, self._state.counting.run(lambda: to_long_json(_tokenized(body, model)))
        )
        return Response(content, media_type="application/json")

    async def detokenize(self, body: protocol.DetokenizeRequest, request: Request) -> Response:
        """Return the text of tokens, control tokens by name."""
        tokenizer = self._state.find(body.model).tokenizer
        check_ids(tokenizer, body.tokens)
        text = await while_wanted(
            request, self._state.counting.run(lambda: tokenizer.decode(body.tokens))
        )
        return respond({"prompt": text})

    async def create_trace(self, body: TraceRequest, request: Request) -> Response:
        """Record one forward pass: its tokens, prediction, logit lens, attribution and sites.

        With interventions, also the change of log probabilities.
        """
        tracer = Tracer(self._state, cache_salt(request))
        return respond(await while_wanted(request, tracer.create(body)))

    async def trace_tensor(
        self, trace_id: str, query: Annotated[TensorQuery, Query()], request: Request
    ) -> Response:
        """Return one tensor of a trace as bytes, see `interpret.encoding`."""
        tracer = Tracer(self._state, cache_salt(request))
        etag = request.headers.get("if-none-match", "")
        return await while_wanted(request, tracer.tensor(trace_id, query, etag))

    async def _begin_chat(self, body: protocol.ChatRequest, request: Request) -> Answer:
        """Return the answer to a chat, after submitting it to the engine."""
        model = self._state.find(body.model)
        salt = cache_salt(request)
        answer = await while_wanted(
            request, self._state.encoding.run(lambda: chat.chat_answer(body, model, salt))
        )
        self._submit([answer])
        return answer

    def _submit(self, answers: Sequence[Answer]) -> None:
        """Submit the answers to the engine: all of them, or none if one is refused."""
        for answer in answers:
            try:
                answer.submit(self._state.engine_thread, self._state.metrics)
            except BaseException:
                abort(answers)
                raise


def abort(answers: Sequence[Answer]) -> None:
    """Free the slots of the answers."""
    for answer in answers:
        answer.abort()


async def all_samples(request: Request, answers: Sequence[Answer]) -> list[list[list[Token]]]:
    """Return the tokens of each sample of each answer, once all are complete.

    The slots are free afterwards, also after an error.
    """

    async def wait() -> list[list[list[Token]]]:
        return [await answer.samples() for answer in answers]

    try:
        return await while_wanted(request, wait())
    finally:
        abort(answers)


def cache_salt(request: Request) -> str:
    """Return the salt that keeps the cached prompts of different API keys apart."""
    return request.headers.get("authorization", "")


def _tokenized(body: protocol.TokenizeRequest, model: ServedModel) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise BadField("prompt", "Give either prompt or messages.")
    if body.add_generation_prompt is not None and body.messages is None:
        raise BadField("add_generation_prompt", "add_generation_prompt is for messages.")
    roles: list[str] | None = None
    if body.messages is not None:
        tokenizer = model.tokenizer
        check(isinstance(tokenizer, TextTokenizer), f"{model.id} does not chat; send prompt.")
        assert isinstance(tokenizer, TextTokenizer)
        messages = chat.conversation(body.messages)
        model.check_size(*(message.content for message in messages))
        tokens = chat_tokens(tokenizer, messages, body.add_generation_prompt is not False)
        ids = tokens.ids
        roles = tokens.roles
    else:
        model.check_size(body.prompt or "")
        ids = model.tokenizer.encode(body.prompt or "")
    reply: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": model.context,
        "tokens": ids,
        "token_strs": [model.tokenizer.token_bytes(i).decode(errors="replace") for i in ids],
        "roles": roles,
    }
    if body.merges:
        reply["merges"] = _merges(body, model)
    return reply


def _merges(body: protocol.TokenizeRequest, model: ServedModel) -> list[list[list[list[int]]]]:
    """Return the steps of each piece of the prompt, each token as its bytes."""
    text = body.prompt
    if text is None or len(text) > MAX_MERGED:
        raise BadField("merges", f"merges are for a prompt of at most {MAX_MERGED} characters.")
    check(isinstance(model.tokenizer, TextTokenizer), f"{model.id} has no byte-level BPE.")
    assert isinstance(model.tokenizer, TextTokenizer)
    return [
        [[list(token) for token in step] for step in steps]
        for steps in merge_steps(model.tokenizer, text, MAX_PIECE)
    ]


def _add_pages(app: FastAPI, has_models: bool) -> None:
    # Without models there is nobody to chat with, only training to look at.
    pages = PAGES if has_models else PAGES | {"/": PAGES["/training"]}

    def add(path: str, name: str) -> None:
        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def page() -> Response:
            return page_file(name)

    for path, name in pages.items():
        add(path, name)

    @app.api_route("/web/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def web(name: str) -> Response:
        return page_file(name)
