"""Batched decoding: prefill the prompts, then draw one token per step for each running sequence.

This is the plain twin of the engine. A test holds their tokens and log probabilities equal.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seq2chat.config import UserError, check
from seq2chat.generation.protocols import (
    Decoder,
    GenerativeModel,
    LanguageModel,
    Seq2SeqModel,
    State,
)
from seq2chat.generation.request import ContextExceeded
from seq2chat.generation.sampling import (
    Penalties,
    SamplingConfig,
    draw,
    next_token_logits,
    row_generators,
)
from seq2chat.generation.tokens import Finish, Token, finish_reason, room_left
from seq2chat.text.batch import pad_rows


@dataclass
class Completion:
    """One generated sample: its token ids, an end token included, and why it ended.

    `logprobs` holds the natural log probability of each token under the model itself (temperature
    1, nothing left out), `drawn_logprobs` the one under the distribution that was drawn from.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn_logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"


@dataclass
class _Row:
    """A running sample: its place in the result, and the tokens that it may still get in all."""

    prompt: int
    sample: int
    room: int
    n_generated: int = 0


def generate(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig = SamplingConfig(),
    end_tokens: Sequence[int] = (),
    n: int = 1,
    stop: Callable[[Token], bool] | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Completion]]:  # the options are keywords of the public API
    """Return `n` completions per prompt. Arguments and errors are as in `stream`."""
    completions = [[Completion() for _ in range(n)] for _ in prompts]
    steps = stream(model, prompts, sampling, end_tokens, n, stop, sources, numbers)
    for tokens in steps:
        for token in tokens:
            assert token.logprob is not None
            assert token.drawn_logprob is not None
            completion = completions[token.prompt][token.sample]
            completion.tokens.append(token.id)
            completion.logprobs.append(token.logprob)
            completion.drawn_logprobs.append(token.drawn_logprob)
            completion.finish = token.finish or completion.finish
    return completions


def stream(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    end_tokens: Sequence[int] = (),
    n: int = 1,
    stop: Callable[[Token], bool] | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[list[Token]]:  # the options are keywords of the public API
    """Yield per step one Token for each running sample. There are `n` samples per prompt.

    All prompts run in one batch, and each is computed once for its `n` samples. A translation model
    reads `sources[p]`, which ends with its end token. Its prompt is the beginning of the target:
    just the end token, unless you give more.

    A sample ends with a token of `end_tokens`, when `stop(token)` returns True, after
    `sampling.max_tokens`, or when prompt and completion fill the model's context. Sample r of the
    batch draws from its own generator, a function of (`sampling.seed`, r). If this is a part of a
    larger batch, `numbers` are the places of its samples there. The model is in evaluation mode
    until the iterator ends. Raises UserError for a prompt that is empty or leaves no room in the
    context, and as `start` does.
    """
    check(n > 0, f"n is {n}; write a positive number of samples.")
    check_prompts(prompts, model.context)
    rows = [
        _Row(p, sample, room_left(len(prompt), sampling.max_tokens, model.context))
        for p, prompt in enumerate(prompts)
        for sample in range(n)
    ]
    generators = row_generators(sampling.seed, len(rows), numbers)
    # Without options that change the distribution, both log probabilities are the same.
    is_plain = sampling == SamplingConfig(sampling.max_tokens, seed=sampling.seed)
    with evaluating(model):
        logits, state = prefill(model, prompts, sources)
        if n > 1:
            with torch.inference_mode():
                repeated = torch.arange(len(prompts), device=model.device).repeat_interleave(n)
                state.reorder(repeated)
                logits = logits[repeated]
        penalties = [
            Penalties(prompts[row.prompt], logits.shape[-1], model.device)
            for row in rows
            if sampling.has_penalties
        ]
        while rows:
            with torch.inference_mode():
                processed = next_token_logits(logits, sampling, penalties)
                ids = draw(processed, sampling, generators)
                logprobs = token_logprobs(logits, ids)
                drawn_logprobs = logprobs if is_plain else token_logprobs(processed, ids)
                for row_penalties, token_id in zip(penalties, ids.tolist(), strict=False):
                    row_penalties.add(token_id)
            tokens = []
            for row, token_id, logprob, drawn_logprob in zip(
                rows, ids.tolist(), logprobs.tolist(), drawn_logprobs.tolist(), strict=True
            ):
                token = Token(token_id, row.sample, row.prompt, logprob, drawn_logprob)
                tokens.append(_finished(token, row, end_tokens, stop))
            yield tokens
            running = [index for index, token in enumerate(tokens) if token.finish is None]
            if not running:
                return
            with torch.inference_mode():
                if len(running) < len(rows):
                    rows = [rows[i] for i in running]
                    generators = [generators[i] for i in running]
                    penalties = [penalties[i] for i in running] if penalties else penalties
                    kept = torch.tensor(running, device=model.device)
                    ids = ids[kept]
                    state.reorder(kept)
                logits, state = model.step(ids[:, None], state)
                logits = logits[:, -1]


@contextmanager
def evaluating(model: Decoder | nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode inside the `with` block."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def prefill(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
) -> tuple[Float[Tensor, "batch vocab"], State]:
    """Return the logits that follow each prompt, and the state after it.

    The prompts of a language model may differ in length: they are padded on the left. Raises
    UserError when the prompts of a translation model differ in length, and as `start` does.
    """
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    state = start(model, sources, padding)
    tokens = torch.tensor(
        [[0] * n_pad + list(ids) for n_pad, ids in zip(padding, prompts, strict=True)]
    )
    logits, state = model.step(tokens.to(model.device), state)
    return logits[:, -1], state


def start(
    model: GenerativeModel, sources: Sequence[Sequence[int]] | None, padding: Sequence[int]
) -> State:
    """Return the state before the prompts. `padding` counts the pad tokens before each prompt.

    Raises UserError for a model that cannot generate, for sources that are missing, empty, of a
    different number than the prompts or given to a language model, and for padding together with
    sources.
    """
    if model.reads_source:
        return _start_seq2seq(cast(Seq2SeqModel, model), sources, padding)
    check(
        sources is None,
        f"A {type(model).__name__} continues a prompt and reads no source; leave out `sources`.",
    )
    n_pads = torch.tensor(padding, device=model.device) if any(padding) else None
    return cast(LanguageModel, model).start(n_pads)


def _start_seq2seq(
    model: Seq2SeqModel, sources: Sequence[Sequence[int]] | None, padding: Sequence[int]
) -> State:
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
        "The prompts of translations differ in length; decode prompts of one length together.",
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


def _finished(
    token: Token, row: _Row, end_tokens: Sequence[int], stop: Callable[[Token], bool] | None
) -> Token:
    """Count the token in its row, and return it with its `finish`."""
    row.n_generated += 1
    is_end = token.id in end_tokens or (stop is not None and stop(token))
    return replace(token, finish=finish_reason(is_end, row.n_generated, row.room))


def check_prompts(prompts: Sequence[Sequence[int]], context: int) -> None:
    """Raise UserError unless there is a prompt, and each has a token and room for one more."""
    check(len(prompts) > 0, "There is no prompt; give at least one.")
    for index, prompt in enumerate(prompts):
        check(len(prompt) > 0, f"Prompt {index} is empty; give at least one token to continue.")
        if len(prompt) >= context:
            raise ContextExceeded(
                f"Prompt {index} has {len(prompt)} tokens and the model's context is {context}; "
                f"shorten it to at most {context - 1}."
            )
