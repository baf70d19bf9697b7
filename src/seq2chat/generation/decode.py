"""Decoding many prompts at once: prefill, then one token a step for every row that has not finished."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from seq2chat.config import check
from seq2chat.generation.sampling import SamplingConfig, row_generators, sample


@runtime_checkable
class State(Protocol):
    def reorder(self, rows: Tensor) -> None: ...


@runtime_checkable
class Decoder(Protocol):
    """What a model offers to be generated from. `context` is the most positions a row may have."""

    training: bool

    @property
    def context(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def start(self, padding: Tensor | None = None) -> Any: ...
    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]: ...
    def train(self, mode: bool = True) -> object: ...


@dataclass(frozen=True)
class Token:
    """One generated token: of sample `sample` of prompt `prompt`. `finish` is set on the last one of a row:
    "stop" after an end token or when the `stop` hook says so, "length" when `max_tokens` or the context is used up."""

    prompt: int
    sample: int
    id: int
    logprob: float
    finish: Literal["stop", "length"] | None


@dataclass
class Completion:
    """What was generated for one sample: the ids (an end token included), their log probabilities under the model
    itself (temperature 1, nothing left out), and why it ended."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
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
) -> list[list[Completion]]:
    """Return `n` completions of each prompt; arguments and errors as in `stream`."""
    completions = [[Completion() for _ in range(n)] for _ in prompts]
    for tokens in stream(model, prompts, sampling, end_tokens, n, stop):
        for token in tokens:
            completion = completions[token.prompt][token.sample]
            completion.tokens.append(token.id)
            completion.logprobs.append(token.logprob)
            completion.finish = token.finish or completion.finish
    return completions


def stream(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    end_tokens: Sequence[int] = (),
    n: int = 1,
    stop: Callable[[Token], bool] | None = None,
) -> Iterator[list[Token]]:
    """Yield, step by step, one Token for every row that is still running: `n` rows for each prompt.

    Prompts of different lengths are padded on the left and run together, each computed once for its `n` samples.
    A row ends with a token of `end_tokens`, when `stop(token)`, asked of each Token, is true, after
    `sampling.max_tokens`, or when prompt and completion fill the model's context. Row r draws from its own generator,
    a function of (`sampling.seed`, r). The model is in evaluation mode meanwhile. Raises UserError for a prompt that is
    empty or leaves no room in the context.
    """
    _check_prompts(prompts, model.context, n)
    rows = [
        _Row(p, s, min(sampling.max_tokens, model.context - len(prompt)))
        for p, prompt in enumerate(prompts)
        for s in range(n)
    ]
    generators = row_generators(sampling.seed, len(rows))
    was_training = model.training
    model.train(False)
    try:
        logits, state = _prefill(model, prompts, n)
        seen = _seen(prompts, n, logits) if sampling.repetition_penalty != 1 else None
        while rows:
            with torch.inference_mode():
                chosen = sample(logits, sampling, generators, seen)
                logprobs = logits.double().log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
                if seen is not None:
                    seen[torch.arange(len(rows)), chosen] = True
            tokens = [
                _advance(row, token, logprob, end_tokens, stop)
                for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True)
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
                    seen = None if seen is None else seen[keep]
                logits, state = model.step(chosen[:, None], state)
                logits = logits[:, -1]
    finally:
        model.train(was_training)


@torch.inference_mode()
def _prefill(model: Decoder, prompts: Sequence[Sequence[int]], n: int) -> tuple[Tensor, State]:
    """Return the logits (rows, vocab) after each prompt and the state, each prompt repeated for its `n` rows."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[0] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)])
    state = model.start(torch.tensor(padding, device=model.device) if any(padding) else None)
    logits, state = model.step(tokens.to(model.device), state)
    logits = logits[:, -1]
    if n > 1:
        rows = torch.arange(len(prompts), device=model.device).repeat_interleave(n)
        state.reorder(rows)
        logits = logits[rows]
    return logits, state


def _advance(
    row: _Row, token: int, logprob: float, end_tokens: Sequence[int], stop: Callable[[Token], bool] | None
) -> Token:
    row.n_tokens += 1
    new = Token(row.prompt, row.sample, token, logprob, None)
    if token in end_tokens or (stop is not None and stop(new)):
        return replace(new, finish="stop")
    return replace(new, finish="length") if row.n_tokens >= row.room else new


def _seen(prompts: Sequence[Sequence[int]], n: int, logits: Tensor) -> Tensor:
    """Return (rows, vocab): which tokens occur in each row's prompt."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for index, prompt in enumerate(prompts):
        seen[index * n : (index + 1) * n, list(prompt)] = True
    return seen


def _check_prompts(prompts: Sequence[Sequence[int]], context: int, n: int) -> None:
    check(len(prompts) > 0, "There is no prompt; give at least one.")
    check(n > 0, f"n is {n}; write a positive number of samples.")
    for index, prompt in enumerate(prompts):
        check(len(prompt) > 0, f"Prompt {index} is empty; give at least one token to continue.")
        check(
            len(prompt) < context,
            f"Prompt {index} has {len(prompt)} tokens and the model's context is {context}; "
            f"shorten it to at most {context - 1}.",
        )
