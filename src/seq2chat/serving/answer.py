"""From a client's request to tokens of the engine, and from tokens to text: what chat and
completion have in common."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from seq2chat.config import UserError
from seq2chat.generation.request import Constraint, DeadlinePassed, Event, Read, Request, Token
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.serving import protocol
from seq2chat.serving.engine_thread import Worker
from seq2chat.serving.metrics import Metrics
from seq2chat.serving.served_model import Served
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.stream import TextStream

T = TypeVar("T")

SECONDS = 600.0  # that a request may take


class BadField(UserError):
    """Raised for a field of a request that cannot be what it is. `param` names it, `code` is
    OpenAI's for the error."""

    def __init__(self, param: str, message: str, code: str | None = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Piece:
    """A token, and the text that may be shown now that it has come."""

    token: Token
    text: str


async def in_time(work: Awaitable[T]) -> T:
    """Return the result of `work`. Raises DeadlinePassed, and cancels it, when it takes longer than
    SECONDS."""
    try:
        return await asyncio.wait_for(work, SECONDS)
    except TimeoutError:
        raise DeadlinePassed(
            "The request was not done within its time; ask for less, or later."
        ) from None


def one_limit(*limits: int | None, at_most: int) -> int:
    """Return the smallest of the limits on an answer's tokens, and `at_most` without one. -1 is no
    limit."""
    return min([limit for limit in limits if limit is not None and limit != -1], default=at_most)


def sampling_config(asked: protocol.Sampling, max_tokens: int) -> SamplingConfig:
    """Return how the next token is drawn. Raises BadField for a token of `logit_bias` that is no
    number."""
    bias = []
    for token, value in (asked.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise BadField(
                "logit_bias", f"logit_bias has the key {token[:20]!r}; write the ids of tokens."
            )
        bias.append((int(token), float(value)))
    given = {
        name: value
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
        )
        if (value := getattr(asked, name)) is not None
    }
    if given.get("top_k") == -1:
        given["top_k"] = 0  # vLLM's way to write that it is off
    return SamplingConfig(max_tokens, logit_bias=tuple(bias), **given)


def stop_strings(asked: protocol.Sampling) -> list[str]:
    """Return the texts before which an answer ends."""
    texts = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return [text for text in texts if text]


def check_best_of(asked: protocol.Sampling) -> None:
    """Raise BadField for more answers to choose from than are sent."""
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise BadField("best_of", "best_of is not n: all answers that are made are sent; write n.")


def check_stream_options(asked: protocol.Sampling) -> None:
    """Raise BadField for options of a stream where none is asked for."""
    if asked.stream_options is not None and asked.stream_options.include_usage and not asked.stream:
        raise BadField("stream_options", "stream_options.include_usage needs stream: true.")


@dataclass
class Answer:
    """One prompt on its way through the engine: `n` samples as text, told to whoever iterates over
    `pieces`.

    Text is made in the engine's thread, where stop strings decide what is drawn next. As no more
    pieces can wait than the context has tokens, a slow reader costs bounded memory and holds no one
    up.
    """

    served: Served
    prompt: list[int]
    sampling: SamplingConfig
    n: int = 1
    stop: Sequence[str] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraints: Sequence[Constraint] = ()
    salt: str = ""
    n_begun: int = 0
    read: Read | None = field(default=None, init=False)
    n_generated: int = field(default=0, init=False)
    _request: Request | None = field(default=None, init=False)

    def submit(self, worker: Worker, metrics: Metrics) -> None:
        """Hand the request to the engine. Raises UserError for a prompt that does not fit and
        QueueFull."""
        engine, tokenizer = self.served.engine, self.served.tokenizer
        assert engine is not None and isinstance(tokenizer, ByteBPE)
        self._metrics = metrics
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Event | Piece]()
        self._streams = [TextStream(tokenizer, self.stop, self.prompt) for _ in range(self.n)]
        self._control, self._shown = set(tokenizer.control.values()), ""
        self._began = time.monotonic()
        self._last: dict[int, float] = {}
        request = Request(
            self.prompt,
            self.sampling,
            self._emit,
            self.served.end_tokens,
            self.n,
            self._stops,
            self.logprobs,
            self.prompt_logprobs,
            self.constraints,
            self.salt,
            self._began + SECONDS,
            n_begun=self.n_begun,
        )
        worker.submit(engine, request)
        self._request = request

    def abort(self) -> None:
        """Free the slots, with the engine's next step; nothing happens to an answer that is
        complete or not begun."""
        if self._request is not None:
            self._request.abort()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of all samples as they come. Raises what made the engine give up."""
        left = self.n
        while left:
            event = await self._queue.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Read):
                self.read = event
            elif isinstance(event, Piece):
                self.n_generated += 1
                left -= event.token.finish is not None
                yield event

    async def wait(self) -> list[list[Piece]]:
        """Return all pieces of each sample."""
        samples: list[list[Piece]] = [[] for _ in range(self.n)]
        async for piece in self.pieces():
            samples[piece.token.sample].append(piece)
        return samples

    # In the engine's thread.

    def _stops(self, token: Token) -> bool:
        stream = self._streams[token.sample]
        # Control tokens are no text.
        self._shown = "" if token.id in self._control else stream.feed(token.id)
        return stream.stopped

    def _emit(self, event: Event) -> None:
        told: Event | Piece = event
        if isinstance(event, Token):
            text = "" if event.id in self.served.end_tokens else self._shown
            if event.finish is not None:
                text += self._streams[event.sample].flush()
            told = Piece(event, text)
            self._measure(event)
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, told)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self.abort()

    def _measure(self, token: Token) -> None:
        now = time.monotonic()
        before = self._last.get(token.sample)
        name, began = self.served.id, self._began
        if before is None:
            self._metrics.time_to_first_token.observe(name, now - began)
        else:
            self._metrics.inter_token_latency.observe(name, now - before)
        self._last[token.sample] = now
        if token.finish is not None:
            self._metrics.request_seconds.observe(name, now - began)
            self._metrics.finished.add((name, token.finish))
