"""Decoding many prompts at once: prefill, then one token a step for every row that has not
finished."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seq2chat.config import UserError, check
from seq2chat.generation.request import ContextExceeded
from seq2chat.generation.sampling import (
    Penalties,
    SamplingConfig,
    draw,
    next_token_logits,
    row_generators,
)
from seq2chat.text.batch import pad_rows


@runtime_checkable
class State(Protocol):
    def reorder(self, rows: Tensor) -> None: ...


@runtime_checkable
class Decoder(Protocol):
    """What a model offers to be generated from. `context` is the most positions a row may have.

    `start` is `start(padding=None)` of a language model, where `padding` counts the meaningless
    tokens in front of each prompt, and `start(source, source_mask=None)` of a model that translates
    a source.
    """

    training: bool

    @property
    def context(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def start(self) -> Callable[..., Any]: ...
    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]: ...
    def train(self, mode: bool = True) -> object: ...


@dataclass(frozen=True)
class Token:
    """One generated token: of sample `sample` of prompt `prompt`. `logprob` is its log probability
    under the model itself, `drawn_logprob` under the distribution that it was drawn from, with
    temperature and all. `finish` is set on the last one of a row: "stop" after an end token or when
    the `stop` hook says so, "length" when `max_tokens` or the context is used up."""

    prompt: int
    sample: int
    id: int
    logprob: float
    drawn_logprob: float
    finish: Literal["stop", "length"] | None


@dataclass
class Completion:
    """What was generated for one sample: the ids (an end token included), their log probabilities
    under the model itself (temperature 1, nothing left out) and under the distribution drawn from,
    and why it ended."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn_logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"


@dataclass
class _Row:
    prompt: int
    sample: int
    room: int
    n_tokens: int = 0


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    end_tokens: Sequence[int] = (),
    n: int = 1,
    stop: Callable[[Token], bool] | None = None,
    sources: Sequence[Sequence[int]] | None = None,
) -> list[list[Completion]]:
    """Return `n` completions of each prompt; arguments and errors as in `stream`."""
    completions = [[Completion() for _ in range(n)] for _ in prompts]
    for tokens in stream(model, prompts, sampling, end_tokens, n, stop, sources):
        for token in tokens:
            completion = completions[token.prompt][token.sample]
            completion.tokens.append(token.id)
            completion.logprobs.append(token.logprob)
            completion.drawn_logprobs.append(token.drawn_logprob)
            completion.finish = token.finish or completion.finish
    return completions


def stream(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    end_tokens: Sequence[int] = (),
    n: int = 1,
    stop: Callable[[Token], bool] | None = None,
    sources: Sequence[Sequence[int]] | None = None,
) -> Iterator[list[Token]]:
    """Yield, step by step, one Token for every row that is still running: `n` rows for each prompt.

    All prompts run together, each computed once for its `n` samples. A model that translates reads
    `sources[p]`, which ends with its end token; its prompt is how the target begins: the end token
    alone, unless more is given. A row ends with a token of `end_tokens`, when `stop(token)`, asked
    of each Token, is true, after `sampling.max_tokens`, or when prompt and completion fill the
    model's context. Row r draws from its own generator, a function of (`sampling.seed`, r). The
    model is in evaluation mode meanwhile. Raises UserError for a prompt that is empty or leaves no
    room in the context, and as `start` does.
    """
    check(n > 0, f"n is {n}; write a positive number of samples.")
    check_prompts(prompts, model.context)
    rows = [
        _Row(p, s, min(sampling.max_tokens, model.context - len(prompt)))
        for p, prompt in enumerate(prompts)
        for s in range(n)
    ]
    generators = row_generators(sampling.seed, len(rows))
    # The model's own distribution.
    plain = sampling == SamplingConfig(sampling.max_tokens, seed=sampling.seed)
    with evaluating(model):
        logits, state = prefill(model, prompts, sources)
        if n > 1:
            with torch.inference_mode():
                repeated = torch.arange(len(prompts), device=model.device).repeat_interleave(n)
                state.reorder(repeated)
                logits = logits[repeated]
        before = [
            Penalties(prompts[row.prompt], logits.shape[-1], model.device)
            for row in rows
            if sampling.penalises
        ]
        while rows:
            with torch.inference_mode():
                processed = next_token_logits(logits, sampling, before)
                chosen = draw(processed, sampling, generators)
                logprobs = token_logprobs(logits, chosen)
                drawn = logprobs if plain else token_logprobs(processed, chosen)
                for row_before, token_id in zip(before, chosen.tolist(), strict=False):
                    row_before.add(token_id)
            tokens = [
                _advance(
                    row,
                    Token(row.prompt, row.sample, token, logprob, drawn_logprob, None),
                    end_tokens,
                    stop,
                )
                for row, token, logprob, drawn_logprob in zip(
                    rows, chosen.tolist(), logprobs.tolist(), drawn.tolist(), strict=True
                )
            ]
            yield tokens
            running = [index for index, token in enumerate(tokens) if token.finish is None]
            if not running:
                return
            with torch.inference_mode():
                if len(running) < len(rows):
                    rows, generators = [rows[i] for i in running], [generators[i] for i in running]
                    keep = torch.tensor(running, device=model.device)
                    chosen = chosen[keep]
                    state.reorder(keep)
                    before = [before[i] for i in running] if before else before
                logits, state = model.step(chosen[:, None], state)
                logits = logits[:, -1]


@contextmanager
def evaluating(model: Decoder | nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode meanwhile."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def prefill(
    model: Decoder, prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int]] | None = None
) -> tuple[Float[Tensor, "batch vocab"], State]:
    """Return the logits that follow each prompt, and the state after it.

    The prompts of a language model may differ in length; they are padded on the left. Raises
    UserError when those of a model that translates do, and as `start` does.
    """
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    state = start(model, sources, padding)
    tokens = torch.tensor(
        [[0] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)]
    )
    logits, state = model.step(tokens.to(model.device), state)
    return logits[:, -1], state


def start(model: Decoder, sources: Sequence[Sequence[int]] | None, padding: Sequence[int]) -> State:
    """Return the state before the prompts, of which `padding` counts the meaningless tokens in
    front.

    Raises UserError for a model that cannot generate, for sources that are missing, empty, of
    another number than the prompts or given to a language model, and for padding together with
    sources.
    """
    check(
        hasattr(model, "step"),
        f"A {type(model).__name__} sees both sides of a text and cannot generate one; use `seq2chat"
        " fill-mask`.",
    )
    if "source" not in inspect.signature(model.start).parameters:
        check(
            sources is None,
            f"A {type(model).__name__} continues a prompt and reads no source; leave out "
            "`sources`.",
        )
        return model.start(torch.tensor(padding, device=model.device) if any(padding) else None)
    if sources is None:
        raise UserError(
            f"A {type(model).__name__} translates a source; give `sources`, one for each prompt."
        )
    check(
        len(sources) == len(padding),
        f"There are {len(sources)} sources and {len(padding)} prompts; give one source for each "
        "prompt.",
    )
    check(
        not any(padding),
        "The prompts of translations differ in length; decode those of one length together.",
    )
    for index, source in enumerate(sources):
        check(len(source) > 0, f"Source {index} is empty; give at least its end token.")
    lengths = torch.tensor([len(source) for source in sources])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(model.device)
    return model.start(pad_rows(sources, 0).to(model.device), None if bool(mask.all()) else mask)


def token_logprobs(
    logits: Float[Tensor, "*shape vocab"], tokens: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the log probability of each token in nats, computed in at least float32."""
    return log_softmax(logits).gather(-1, tokens[..., None])[..., 0]


def log_softmax(logits: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape vocab"]:
    """Return the log probabilities, computed in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _advance(
    row: _Row, new: Token, end_tokens: Sequence[int], stop: Callable[[Token], bool] | None
) -> Token:
    """Count the token, and return it with the reason if it is its row's last."""
    row.n_tokens += 1
    if new.id in end_tokens or (stop is not None and stop(new)):
        return replace(new, finish="stop")
    return replace(new, finish="length") if row.n_tokens >= row.room else new


def check_prompts(prompts: Sequence[Sequence[int]], context: int) -> None:
    """Raise UserError unless there is a prompt and each has a token and leaves room for one
    more."""
    check(len(prompts) > 0, "There is no prompt; give at least one.")
    for index, prompt in enumerate(prompts):
        check(len(prompt) > 0, f"Prompt {index} is empty; give at least one token to continue.")
        if len(prompt) >= context:
            raise ContextExceeded(
                f"Prompt {index} has {len(prompt)} tokens and the model's context is {context}; "
                f"shorten it to at most {context - 1}."
            )
