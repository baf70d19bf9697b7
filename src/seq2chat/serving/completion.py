"""`POST /v1/completions`: texts are continued, or scored as they are."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from seq2chat.config import check
from seq2chat.generation.tokens import Token
from seq2chat.serving.answer import (
    Answer,
    BadField,
    check_best_of,
    check_stream_options,
    sampling_config,
    stop_strings,
    token_limit,
)
from seq2chat.serving.chat import new_id, usage
from seq2chat.serving.logprobs import ScoredToken, completion_logprobs
from seq2chat.serving.protocol import CompletionRequest, as_list
from seq2chat.serving.served_model import ServedModel
from seq2chat.text.text_tokenizer import TextTokenizer

DEFAULT_TOKENS = 16  # OpenAI's


def completion_answers(body: CompletionRequest, model: ServedModel, salt: str) -> list[Answer]:
    """Return one answer per prompt, ready to be submitted.

    Raises BadField or UserError for a request that the model cannot serve.
    """
    check(
        model.engine is not None,
        f"{model.id} is a {model.family}, which cannot continue a text; /v1/embeddings works "
        "with it.",
    )
    check_stream_options(body)
    check_best_of(body)
    if body.max_tokens == 0 and not body.echo:
        raise BadField(
            "max_tokens", "max_tokens 0 needs echo: true; else there is nothing to answer."
        )
    if body.max_tokens == 0 and body.stream:
        raise BadField("stream", "With max_tokens 0 there is nothing to stream; leave stream out.")
    limit = DEFAULT_TOKENS
    if body.max_tokens is not None:
        limit = token_limit(body.max_tokens, default=model.context)
    # A text that is only scored gets one token too, which `response` leaves out.
    sampling = sampling_config(body, max(limit, 1))
    return [
        Answer(
            model=model,
            prompt=prompt,
            sampling=sampling,
            n=body.n or 1,
            stop=stop_strings(body),
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
            salt=salt,
        )
        for prompt in prompts(body, model)
    ]


def prompts(body: CompletionRequest, model: ServedModel) -> list[list[int]]:
    """Return the tokens of each prompt.

    A text begins as in training: after the end token of the previous text.
    """
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    start = tokenizer.start_ids
    ids = []
    for prompt in as_list(body.prompt):
        if isinstance(prompt, str):
            model.check_size(prompt)
            prompt = start + tokenizer.encode(prompt)
        ids.append(prompt)
    return ids


def _choice(
    body: CompletionRequest,
    answer: Answer,
    index: int,
    tokens: list[Token],
    *,
    echo: bool,
    offset: int = 0,
    is_first: bool = True,
) -> dict[str, Any]:  # the last three differ between a whole sample and a chunk
    """Return a choice object for all tokens of a sample, or for the tokens of one chunk.

    The text of a chunk begins at `offset` in the text of its choice. `is_first` marks the first
    chunk.
    """
    tokenizer = answer.model.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    prompt = prompt_text(tokenizer, answer.prompt) if echo else ""
    choice: dict[str, Any] = {
        "index": index,
        "text": prompt + "".join(token.text for token in tokens),
        "logprobs": None,
        "finish_reason": tokens[-1].finish if tokens else "length",
    }
    if answer.logprobs is not None:
        choice["logprobs"] = completion_logprobs(
            answer.model.token_names, _scored(answer, tokens, echo), offset
        )
    if body.return_token_ids:
        choice["token_ids"] = [token.id for token in tokens]
        if is_first:
            choice["prompt_token_ids"] = answer.prompt
    return choice


def _scored(answer: Answer, tokens: Sequence[Token], echo: bool) -> list[ScoredToken]:
    tokenizer = answer.model.tokenizer
    prompt_read = answer.prompt_read
    assert isinstance(tokenizer, TextTokenizer)
    scored: list[ScoredToken] = []
    if echo and prompt_read is not None:
        # The first bytes of a character add nothing to the text, its last byte adds all of it.
        decoder = tokenizer.stream_decoder()
        visible = set(text_ids(tokenizer, answer.prompt))
        for token_id, logprob, top in zip(
            answer.prompt, prompt_read.logprobs, prompt_read.tops, strict=True
        ):
            text = decoder.feed(token_id) if token_id in visible else ""
            scored.append(ScoredToken(token_id, logprob, top, text))
        scored[-1] = replace(scored[-1], text=scored[-1].text + decoder.flush())
    scored += [ScoredToken(token.id, token.logprob, token.top, token.text) for token in tokens]
    return scored


def prompt_text(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """Return the text of `ids` without control tokens."""
    return tokenizer.decode(text_ids(tokenizer, ids))


def text_ids(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[int]:
    """Return `ids` without control tokens."""
    control = set(tokenizer.control.values())
    return [i for i in ids if i not in control]


def completion_head(body: CompletionRequest) -> dict[str, Any]:
    """Return the fields that a `text_completion` object and its chunks begin with."""
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
    }


def response(
    body: CompletionRequest, answers: list[Answer], samples: list[list[list[Token]]]
) -> dict[str, Any]:
    """Return the `text_completion` object for the tokens of each answer's samples.

    It has `n` choices per prompt, in the order of the prompts.
    """
    is_scored_only = body.max_tokens == 0
    choices: list[dict[str, Any]] = []
    for answer, answer_samples in zip(answers, samples, strict=True):
        for tokens in answer_samples:
            kept = [] if is_scored_only else tokens
            choices.append(_choice(body, answer, len(choices), kept, echo=bool(body.echo)))
        if is_scored_only:
            answer.n_generated = 0
    return completion_head(body) | {"choices": choices, "usage": usage(answers)}


async def chunks(body: CompletionRequest, answers: list[Answer]) -> AsyncIterator[dict[str, Any]]:
    """Yield the `text_completion` chunks of all prompts as they come, then the usage."""
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    head = completion_head(body)
    no_usage = {"usage": None} if include_usage else {}
    # By index of each choice that has begun, the length of its text so far.
    lengths: dict[int, int] = {}
    sends_every_token = body.return_token_ids or body.logprobs is not None
    async for number, token in _merged(answers):
        answer = answers[number]
        index = number * answer.n + token.sample
        is_first = index not in lengths
        echo = bool(body.echo) and is_first
        if token.text or token.finish or sends_every_token or echo:
            offset = lengths.get(index, 0)
            choice = _choice(
                body, answer, index, [token], echo=echo, offset=offset, is_first=is_first
            )
            yield head | {"choices": [choice]} | no_usage
            lengths[index] = offset + len(choice["text"])
    if include_usage:
        yield head | {"choices": [], "usage": usage(answers)}


async def _merged(answers: list[Answer]) -> AsyncIterator[tuple[int, Token]]:
    """Yield the tokens of all answers as they come, with the number of the answer."""
    iterators = [answer.tokens() for answer in answers]
    tasks = {asyncio.ensure_future(anext(tokens)): i for i, tokens in enumerate(iterators)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = tasks.pop(task)
                try:
                    token = task.result()
                except StopAsyncIteration:
                    continue
                yield number, token
                tasks[asyncio.ensure_future(anext(iterators[number]))] = number
    finally:
        for task in tasks:
            task.cancel()
