"""`POST /v1/completions`: texts go on, or are scored as they are, or are translated by an encoder–decoder."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from seq2chat.config import check
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.serving.answer import Answer, BadField, Piece, check_stream_options, sampling_config, stop_strings
from seq2chat.serving.chat import new_id, usage
from seq2chat.serving.protocol import CompletionRequest, one_by_one
from seq2chat.serving.served import Served
from seq2chat.serving.worker import Worker
from seq2chat.text.tokenizer import Tokenizer
from seq2chat.training.translation import Translation, translate

BEAM = 5
LINES = 8  # translated at once
LONGEST_LINE = 1024  # tokens that a translation reads or is asked for: it holds the engines up until it is done
DEFAULT_TOKENS = 16  # OpenAI's


def completion_answers(asked: CompletionRequest, served: Served, salt: str) -> list[Answer]:
    """Return one answer for each prompt. Raises BadField or UserError for what the model cannot do."""
    check(
        served.engine is not None,
        f"{served.id} is a {served.family}, which cannot continue a text; /v1/embeddings works with it.",
    )
    check_stream_options(asked)
    if asked.max_tokens == 0 and not asked.echo:
        raise BadField("max_tokens", "max_tokens 0 needs echo: true; else there is nothing to answer.")
    if asked.max_tokens == 0 and asked.stream:
        raise BadField("stream", "With max_tokens 0 there is nothing to stream; leave stream out.")
    sampling = sampling_config(asked, DEFAULT_TOKENS if asked.max_tokens is None else max(asked.max_tokens, 1))
    scored = bool(asked.echo) and asked.logprobs is not None
    return [
        Answer(served, prompt, sampling, asked.n or 1, stop_strings(asked), asked.logprobs, scored, salt=salt)
        for prompt in prompts(asked, served)
    ]


def prompts(asked: CompletionRequest, served: Served) -> list[list[int]]:
    """Return the tokens of each prompt. A text begins as every text did in training: with the end of the one before."""
    tokenizer, made = served.tokenizer, []
    assert isinstance(tokenizer, Tokenizer)
    start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for one in one_by_one(asked.prompt):
        if isinstance(one, str):
            served.check_size(one)
            one = start + tokenizer.encode(one)
        made.append(one)
    return made


@dataclass(frozen=True)
class _Told:
    """A token of prompt or answer as OpenAI's log probabilities tell it, and the text that came with it."""

    id: int
    logprob: float | None
    top: list[tuple[int, float]]
    text: str


def _choice(
    asked: CompletionRequest,
    answer: Answer,
    index: int,
    pieces: list[Piece],
    echo: bool,
    offset: int = 0,
    first: bool = True,
) -> dict[str, Any]:
    """Return one choice: of all pieces of a sample, or of those of one chunk, whose text begins at `offset` and
    which is the `first` one or not."""
    tokenizer = answer.served.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    tokens = [piece.token for piece in pieces]
    before = prompt_text(tokenizer, answer.prompt) if echo else ""
    choice: dict[str, Any] = {
        "index": index, "text": before + "".join(piece.text for piece in pieces), "logprobs": None,
        "finish_reason": tokens[-1].finish if tokens else "length",
    }  # fmt: skip
    if answer.logprobs is not None:
        choice["logprobs"] = _logprobs(tokenizer, _told(answer, pieces, echo), offset)
    if asked.return_token_ids:
        choice["token_ids"] = [token.id for token in tokens]
        choice |= {"prompt_token_ids": answer.prompt} if first else {}
    return choice


def _told(answer: Answer, pieces: Sequence[Piece], echo: bool) -> list[_Told]:
    tokenizer, read = answer.served.tokenizer, answer.read
    assert isinstance(tokenizer, Tokenizer)
    told = []
    if echo and read is not None:
        # The first bytes of a character add nothing to the text, its last one adds all of it.
        decoder, shown = tokenizer.stream_decoder(), set(shown_ids(tokenizer, answer.prompt))
        for token, logprob, top in zip(answer.prompt, read.logprobs, read.tops, strict=True):
            told.append(_Told(token, logprob, top, decoder.feed(token) if token in shown else ""))
        told[-1] = replace(told[-1], text=told[-1].text + decoder.flush())
    return told + [_Told(p.token.id, p.token.logprob, p.token.top, p.text) for p in pieces]


def _logprobs(tokenizer: Tokenizer, told: Sequence[_Told], offset: int) -> dict[str, Any]:
    """Return OpenAI's four lists, places in the text counted from `offset`. Of several tokens with one name, such as
    halves of characters, the likeliest is in `top_logprobs`; the token itself always is."""
    names, offsets, at = [], [], offset
    for one in told:
        names.append(tokenizer.decode([one.id]))
        offsets.append(at)
        at += len(one.text)
    tops: list[dict[str, float] | None] = []
    for one, name in zip(told, names, strict=True):
        likely = {tokenizer.decode([token]): max(logprob, -9999.0) for token, logprob in reversed(one.top)}
        tops.append(None if one.logprob is None else {name: max(one.logprob, -9999.0)} | likely)
    logprobs = [None if one.logprob is None else max(one.logprob, -9999.0) for one in told]
    return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def prompt_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of `ids` without control tokens."""
    return tokenizer.decode(shown_ids(tokenizer, ids))


def shown_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Return those of `ids` that are text."""
    control = set(tokenizer.control.values())
    return [i for i in ids if i not in control]


def _head(asked: CompletionRequest) -> dict[str, Any]:
    return {"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": asked.model}


async def whole(asked: CompletionRequest, answers: list[Answer]) -> dict[str, Any]:
    """Return the `text_completion` object: `n` choices for each prompt, in their order."""
    choices: list[dict[str, Any]] = []
    for answer, samples in zip(answers, await asyncio.gather(*(a.wait() for a in answers)), strict=True):
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


async def translation(asked: CompletionRequest, served: Served, worker: Worker) -> dict[str, Any]:
    """Return the translations of the prompts, each a line, by beam search: the `n` best of each, best first.

    Raises BadField for options that beam search has no use for.
    """
    unused = sorted(asked.model_fields_set - {"model", "prompt", "n", "max_tokens", "stream", "stream_options"})
    if unused:
        raise BadField(unused[0], f"{unused[0]} has no meaning for {served.id}, which translates by beam search.")
    check_stream_options(asked)
    lines = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    texts = [line for line in lines if isinstance(line, str)]
    if len(texts) < len(lines):
        raise BadField("prompt", f"{served.id} translates texts; send them as text, not as tokens.")
    if any(not line.strip() or "\n" in line.strip() for line in texts):
        raise BadField("prompt", f"{served.id} translates sentences; send each as one line that is not empty.")
    if asked.max_tokens == 0:
        raise BadField("max_tokens", "max_tokens 0 is for scoring texts; a translation has at least one token.")
    model, tokenizer, n = served.model, served.tokenizer, asked.n or 1
    assert isinstance(model, Seq2Seq | Transformer) and isinstance(tokenizer, Tokenizer)
    if (asked.max_tokens or 0) > LONGEST_LINE:
        raise BadField("max_tokens", f"A translation has at most {LONGEST_LINE} tokens; write a smaller max_tokens.")
    most = min(asked.max_tokens or 0, served.context - 1)
    options = {"beam": max(BEAM, n), "n_best": n, "max_length": most}
    room = min(served.context - 1, LONGEST_LINE)
    for line in texts:
        served.check_size(line.strip())
    if await asyncio.to_thread(lambda: max(len(tokenizer.encode(line)) for line in texts)) > room:
        raise BadField("prompt", f"A line has more than the {room} tokens that {served.id} reads; send sentences.")
    found: list[Translation] = []
    for first in range(0, len(texts), LINES):  # so that the engines step in between, and nobody is waited for who left
        work = partial(list, translate(model, tokenizer, texts[first : first + LINES], **options))
        found += await asyncio.wrap_future(worker.call(work))
    choices: list[dict[str, Any]] = []
    for line in found:
        for text, hypothesis in zip(line.texts, line.hypotheses, strict=True):
            finish = "stop" if hypothesis.finished else "length"
            choices.append({"index": len(choices), "text": text, "logprobs": None, "finish_reason": finish})
    read = sum(len(line.source) for line in found)
    written = sum(len(h.tokens) for line in found for h in line.hypotheses)
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return _head(asked) | {"choices": choices, "usage": counts}


async def translation_chunks(asked: CompletionRequest, whole: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Yield a translation as chunks, one a choice: beam search knows none before it is done."""
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    head = {name: value for name, value in whole.items() if name not in ("choices", "usage")}
    for choice in whole["choices"]:
        yield head | {"choices": [choice]} | ({"usage": None} if include_usage else {})
    if include_usage:
        yield head | {"choices": [], "usage": whole["usage"]}
