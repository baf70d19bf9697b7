"""`POST /v1/completions`: texts go on, or are scored as they are, or are translated by an
encoder–decoder."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from seq2chat.config import check
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.translate import Translation, translate
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.serving.answer import (
    Answer,
    BadField,
    Piece,
    check_best_of,
    check_stream_options,
    one_limit,
    sampling_config,
    stop_strings,
)
from seq2chat.serving.chat import new_id, usage
from seq2chat.serving.engine_thread import Worker
from seq2chat.serving.logprobs import ScoredToken, completion_logprobs
from seq2chat.serving.pool import Pool
from seq2chat.serving.protocol import CompletionRequest, one_by_one
from seq2chat.serving.served_model import Served
from seq2chat.text.byte_bpe import ByteBPE

BEAM = 5
LINES = 8  # translated at once
# Tokens that a translation reads or is asked for: it holds the engines up until it is done.
LONGEST_LINE = 1024
MOST_LINES = 1000  # in one request
DEFAULT_TOKENS = 16  # OpenAI's
NOTHING = (None, False, "", [])


def completion_answers(asked: CompletionRequest, served: Served, salt: str) -> list[Answer]:
    """Return one answer for each prompt. Raises BadField or UserError for what the model cannot
    do."""
    check(
        served.engine is not None,
        f"{served.id} is a {served.family}, which cannot continue a text; /v1/embeddings works "
        "with it.",
    )
    check_stream_options(asked)
    check_best_of(asked)
    if asked.max_tokens == 0 and not asked.echo:
        raise BadField(
            "max_tokens", "max_tokens 0 needs echo: true; else there is nothing to answer."
        )
    if asked.max_tokens == 0 and asked.stream:
        raise BadField("stream", "With max_tokens 0 there is nothing to stream; leave stream out.")
    limit = (
        DEFAULT_TOKENS
        if asked.max_tokens is None
        else one_limit(asked.max_tokens, at_most=served.context)
    )
    sampling = sampling_config(asked, max(limit, 1))
    scored = bool(asked.echo) and asked.logprobs is not None
    return [
        Answer(
            served,
            prompt,
            sampling,
            asked.n or 1,
            stop_strings(asked),
            asked.logprobs,
            scored,
            salt=salt,
        )
        for prompt in prompts(asked, served)
    ]


def prompts(asked: CompletionRequest, served: Served) -> list[list[int]]:
    """Return the tokens of each prompt. A text begins as every text did in training: with the end
    of the one before."""
    tokenizer, made = served.tokenizer, []
    assert isinstance(tokenizer, ByteBPE)
    start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for one in one_by_one(asked.prompt):
        if isinstance(one, str):
            served.check_size(one)
            one = start + tokenizer.encode(one)
        made.append(one)
    return made


def _choice(
    asked: CompletionRequest,
    answer: Answer,
    index: int,
    pieces: list[Piece],
    echo: bool,
    offset: int = 0,
    first: bool = True,
) -> dict[str, Any]:
    """Return one choice: of all pieces of a sample, or of those of one chunk, whose text begins at
    `offset` and which is the `first` one or not."""
    tokenizer = answer.served.tokenizer
    assert isinstance(tokenizer, ByteBPE)
    tokens = [piece.token for piece in pieces]
    before = prompt_text(tokenizer, answer.prompt) if echo else ""
    choice: dict[str, Any] = {
        "index": index,
        "text": before + "".join(piece.text for piece in pieces),
        "logprobs": None,
        "finish_reason": tokens[-1].finish if tokens else "length",
    }
    if answer.logprobs is not None:
        choice["logprobs"] = completion_logprobs(
            answer.served.token_names, _scored(answer, pieces, echo), offset
        )
    if asked.return_token_ids:
        choice["token_ids"] = [token.id for token in tokens]
        choice |= {"prompt_token_ids": answer.prompt} if first else {}
    return choice


def _scored(answer: Answer, pieces: Sequence[Piece], echo: bool) -> list[ScoredToken]:
    tokenizer, read = answer.served.tokenizer, answer.read
    assert isinstance(tokenizer, ByteBPE)
    scored: list[ScoredToken] = []
    if echo and read is not None:
        # The first bytes of a character add nothing to the text, its last one adds all of it.
        decoder, shown = tokenizer.stream_decoder(), set(shown_ids(tokenizer, answer.prompt))
        for token, logprob, top in zip(answer.prompt, read.logprobs, read.tops, strict=True):
            scored.append(
                ScoredToken(token, logprob, top, decoder.feed(token) if token in shown else "")
            )
        scored[-1] = replace(scored[-1], text=scored[-1].text + decoder.flush())
    return scored + [ScoredToken(p.token.id, p.token.logprob, p.token.top, p.text) for p in pieces]


def prompt_text(tokenizer: ByteBPE, ids: Sequence[int]) -> str:
    """Return the text of `ids` without control tokens."""
    return tokenizer.decode(shown_ids(tokenizer, ids))


def shown_ids(tokenizer: ByteBPE, ids: Sequence[int]) -> list[int]:
    """Return those of `ids` that are text."""
    control = set(tokenizer.control.values())
    return [i for i in ids if i not in control]


def _head(asked: CompletionRequest) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": asked.model,
    }


def whole(
    asked: CompletionRequest, answers: list[Answer], made: list[list[list[Piece]]]
) -> dict[str, Any]:
    """Return the `text_completion` object of the pieces of each answer's samples: `n` choices for
    each prompt, in their order."""
    choices: list[dict[str, Any]] = []
    for answer, samples in zip(answers, made, strict=True):
        for pieces in samples:
            kept = [] if asked.max_tokens == 0 else pieces
            choices.append(_choice(asked, answer, len(choices), kept, bool(asked.echo)))
        if asked.max_tokens == 0:
            answer.n_generated = 0
    return _head(asked) | {"choices": choices, "usage": usage(answers)}


async def chunks(asked: CompletionRequest, answers: list[Answer]) -> AsyncIterator[dict[str, Any]]:
    """Yield the `text_completion` chunks of all prompts as they come, then the usage."""
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    head, nothing = _head(asked), {"usage": None} if include_usage else {}
    told: dict[int, int] = {}
    """Of each choice that was begun, where its next text stands."""
    shown_anyway = asked.return_token_ids or asked.logprobs is not None
    async for at, piece in _merged(answers):
        answer = answers[at]
        index = at * answer.n + piece.token.sample
        first = index not in told
        echo = bool(asked.echo) and first
        if piece.text or piece.token.finish or shown_anyway or echo:
            choice = _choice(asked, answer, index, [piece], echo, told.get(index, 0), first)
            yield head | {"choices": [choice]} | nothing
            told[index] = told.get(index, 0) + len(choice["text"])
    if include_usage:
        yield head | {"choices": [], "usage": usage(answers)}


async def _merged(answers: list[Answer]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield the pieces of all answers as they come, with the number of the answer."""
    iterators = [answer.pieces() for answer in answers]
    waiting = {asyncio.ensure_future(anext(iterator)): at for at, iterator in enumerate(iterators)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                at = waiting.pop(task)
                try:
                    piece = task.result()
                except StopAsyncIteration:
                    continue
                yield at, piece
                waiting[asyncio.ensure_future(anext(iterators[at]))] = at
    finally:
        for task in waiting:
            task.cancel()


async def translation(
    asked: CompletionRequest, served: Served, worker: Worker, encoding: Pool
) -> dict[str, Any]:
    """Return the translations of the prompts by beam search: the `n` best of each, best first.

    Each line of a prompt is translated for itself, and an empty line stays empty. Raises BadField
    for options that beam search has no use for.
    """
    check_translation(asked, served)
    texts = [one for one in one_by_one(asked.prompt) if isinstance(one, str)]
    model, tokenizer, n = served.model, served.tokenizer, asked.n or 1
    assert isinstance(model, Seq2Seq | Transformer) and isinstance(tokenizer, ByteBPE)
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    if len(lines) > MOST_LINES:
        raise BadField(
            "prompt", f"The prompt has {len(lines):,} lines; send at most {MOST_LINES:,} at once."
        )
    most = min(one_limit(asked.max_tokens, at_most=0), served.context - 1)
    options = {"beam": max(BEAM, n), "n_best": n, "max_length": most}
    room = min(served.context - 1, LONGEST_LINE)
    for line in lines:
        served.check_size(line.strip())
    if (
        lines
        and await encoding.run(lambda: max(len(tokenizer.encode(line)) for line in lines)) > room
    ):
        raise BadField(
            "prompt",
            f"A line has more than the {room} tokens that {served.id} reads; send sentences.",
        )
    found: list[Translation] = []
    # So that the engines step in between, and nobody is waited for who left.
    for first in range(0, len(lines), LINES):
        work = partial(list, translate(model, tokenizer, lines[first : first + LINES], **options))
        found += await asyncio.wrap_future(worker.call(work))
    choices: list[dict[str, Any]] = []
    following = iter(found)
    for text in texts:
        translated = [next(following) if line.strip() else None for line in text.split("\n")]
        for sample in range(n):
            written = ["" if line is None else line.texts[sample] for line in translated]
            is_whole = all(line is None or line.hypotheses[sample].finished for line in translated)
            choices.append(
                {
                    "index": len(choices),
                    "text": "\n".join(written),
                    "logprobs": None,
                    "finish_reason": "stop" if is_whole else "length",
                }
            )
    read = sum(len(line.source) for line in found)
    written = sum(len(h.tokens) for line in found for h in line.hypotheses)
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return _head(asked) | {"choices": choices, "usage": counts}


def check_translation(asked: CompletionRequest, served: Served) -> None:
    """Raise BadField for a request that beam search cannot honor. Neutral values ask for nothing of
    it."""
    sampling = sampling_config(asked, 1)
    plain = SamplingConfig(1, temperature=sampling.temperature, seed=sampling.seed)
    options = [
        field.name
        for field in fields(SamplingConfig)
        if getattr(sampling, field.name) != getattr(plain, field.name)
    ]
    options += [
        name
        for name in ("stop", "echo", "logprobs", "return_token_ids")
        if getattr(asked, name) not in NOTHING
    ]
    if sampling.temperature not in (0, 1):
        # 0 asks for the likeliest, which beam search looks for, and 1 is the default.
        options.append("temperature")
    if options:
        raise BadField(
            options[0],
            f"{options[0]} has no meaning for {served.id}, which translates by beam search.",
        )
    check_stream_options(asked)
    check_best_of(asked)
    if not all(isinstance(one, str) for one in one_by_one(asked.prompt)):
        raise BadField("prompt", f"{served.id} translates texts; send them as text, not as tokens.")
    if asked.max_tokens == 0:
        raise BadField(
            "max_tokens", "max_tokens 0 is for scoring texts; a translation has at least one token."
        )
    if (asked.max_tokens or 0) > LONGEST_LINE:
        raise BadField(
            "max_tokens",
            f"A translation has at most {LONGEST_LINE} tokens; write a smaller max_tokens.",
        )


async def translation_chunks(
    asked: CompletionRequest, whole: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    """Yield a translation as chunks, one a choice: beam search knows none before it is done."""
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    head = {name: value for name, value in whole.items() if name not in ("choices", "usage")}
    for choice in whole["choices"]:
        yield head | {"choices": [choice]} | ({"usage": None} if include_usage else {})
    if include_usage:
        yield head | {"choices": [], "usage": whole["usage"]}
