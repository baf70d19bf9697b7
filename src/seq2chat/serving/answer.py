"""From a client's prompt to tokens of the engine, and from tokens to text.

The chat, responses and completions routes share this module.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest

from seq2chat.config import UserError
from seq2chat.generation.request import Constraint, DeadlinePassed, Event, PromptRead, Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.tokens import Token
from seq2chat.serving import protocol
from seq2chat.serving.engine_thread import EngineThread, Stopped
from seq2chat.serving.metrics import Metrics, RequestTimer
from seq2chat.serving.served_model import ServedModel
from seq2chat.serving.sse import unless_gone
from seq2chat.text.stream import TextStream
from seq2chat.text.text_tokenizer import TextTokenizer

T = TypeVar("T")

SECONDS = 600.0  # that a request may take


class BadField(UserError):
    """Raised for an invalid field of a request. `param` names it, `code` is OpenAI's error code."""

    def __init__(self, param: str, message: str, code: str | None = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


async def in_time(work: Awaitable[T]) -> T:
    """Return the result of `work`.

    Cancels it and raises DeadlinePassed when it takes longer than SECONDS.
    """
    try:
        return await asyncio.wait_for(work, SECONDS)
    except TimeoutError:
        raise DeadlinePassed from None


async def while_wanted(request: HTTPRequest, work: Awaitable[T]) -> T:
    """Return the result of `work`, or cancel it.

    Raises DeadlinePassed when it takes too long, and Stopped when the client has disconnected.
    """
    result = await unless_gone(request.receive, in_time(work))
    if result is None:
        raise Stopped("The client has gone.")
    return result


def token_limit(*limits: int | None, default: int) -> int:
    """Return the smallest of the limits on an answer's tokens. None and -1 mean no limit."""
    return min([limit for limit in limits if limit is not None and limit != -1], default=default)


def sampling_config(body: protocol.Sampling, max_tokens: int) -> SamplingConfig:
    """Return the sampling options of a request.

    Raises BadField when a key of `logit_bias` is not a number.
    """
    biases = []
    for token, value in (body.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise BadField(
                "logit_bias", f"logit_bias has the key {token[:20]!r}; write the ids of tokens."
            )
        biases.append((int(token), float(value)))
    fields: dict[str, Any] = {
        "temperature": body.temperature,
        "top_k": 0 if body.top_k == -1 else body.top_k,  # vLLM writes -1 for "off"
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": body.seed,
    }
    options = {name: value for name, value in fields.items() if value is not None}
    return SamplingConfig(max_tokens, logit_bias=tuple(biases), **options)


def stop_strings(body: protocol.Sampling) -> list[str]:
    """Return the stop strings. An answer ends before the first of them."""
    texts = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return [text for text in texts if text]


def check_best_of(body: protocol.Sampling) -> None:
    """Raise BadField if `best_of` is more than the number of answers to send."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise BadField(
            "best_of", "best_of differs from n, but all generated answers are sent; write n."
        )


def check_stream_options(body: protocol.Sampling) -> None:
    """Raise BadField for stream options without a stream."""
    if body.stream_options is not None and body.stream_options.include_usage and not body.stream:
        raise BadField("stream_options", "stream_options.include_usage needs stream: true.")


class Answer:
    """One prompt in the engine: `n` samples as text, yielded by `tokens` as they come.

    `n_begun` is the number of tokens at the end of the prompt with which an answer in a chat has
    begun, and None for a text that continues its prompt.

    Text is decoded in the engine's thread, because stop strings decide if a sample continues. The
    queue holds at most as many tokens as fit the context, so a slow reader costs bounded memory and
    delays no one.
    """

    def __init__(
        self,
        *,
        model: ServedModel,
        prompt: list[int],
        sampling: SamplingConfig,
        n: int = 1,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        constraints: Sequence[Constraint] = (),
        salt: str = "",
        n_begun: int | None = None,
    ) -> None:  # these are the fields of an engine's request
        tokenizer = model.tokenizer
        assert isinstance(tokenizer, TextTokenizer)
        self.model = model
        self.prompt = prompt
        self.sampling = sampling
        self.n = n
        self.logprobs = logprobs
        self.prompt_logprobs = prompt_logprobs
        self.constraints = constraints
        self.salt = salt
        self.n_begun = n_begun or 0
        self.prompt_read: PromptRead | None = None
        self.n_generated = 0
        # The answer in a chat is a text of its own.
        before = prompt if n_begun is None else prompt[len(prompt) - n_begun :]
        self._streams = [TextStream(tokenizer, stop, before) for _ in range(n)]
        self._control = set(tokenizer.control.values())
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._request: Request | None = None

    def submit(self, engine_thread: EngineThread, metrics: Metrics) -> None:
        """Send the request to the engine. Call it in the event loop that will read `tokens`.

        Raises UserError for a prompt that does not fit, and QueueFull.
        """
        engine = self.model.engine
        assert engine is not None
        timer = RequestTimer(metrics, self.model.id)
        request = Request(
            prompt=self.prompt,
            sampling=self.sampling,
            emit=partial(self._emit, asyncio.get_running_loop(), timer),
            end_tokens=self.model.end_tokens,
            n=self.n,
            on_token=self._decode,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            constraints=self.constraints,
            salt=self.salt,
            deadline=time.monotonic() + SECONDS,
            n_begun=self.n_begun,
        )
        engine_thread.submit(engine, request)
        self._request = request

    def abort(self) -> None:
        """Free the slots with the engine's next step.

        Does nothing to an answer that is complete or was never submitted.
        """
        if self._request is not None:
            self._request.abort()

    async def tokens(self) -> AsyncIterator[Token]:
        """Yield the tokens of all samples as they come. Raises the error that ended the request.

        `token.text` is the text that can be shown after this token. It is empty while it might
        become a stop string, and within a character of several tokens.
        """
        n_open = self.n
        while n_open:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, PromptRead):
                self.prompt_read = event
            else:
                self.n_generated += 1
                n_open -= event.finish is not None
                yield event

    async def samples(self) -> list[list[Token]]:
        """Return all tokens of each sample, once the answer is complete."""
        samples: list[list[Token]] = [[] for _ in range(self.n)]
        async for token in self.tokens():
            samples[token.sample].append(token)
        return samples

    # These run in the engine's thread.

    def _decode(self, token: Token) -> tuple[str, bool]:
        """Return the text that `token` adds to its sample, and True if a stop string ends it."""
        stream = self._streams[token.sample]
        text = "" if token.id in self._control else stream.feed(token.id)
        return text, stream.stopped

    def _emit(self, loop: asyncio.AbstractEventLoop, timer: RequestTimer, event: Event) -> None:
        if isinstance(event, Token):
            timer.observe(event)
            if event.finish is not None:
                # The text that was held back, because a stop string could begin with it.
                rest = self._streams[event.sample].flush()
                event = replace(event, text=event.text + rest)
        try:
            loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed, so no one is left to read
            self.abort()
