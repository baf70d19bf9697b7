"""`POST /v1/completions` for an encoder-decoder: each line of a prompt is translated."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields
from functools import partial
from typing import Any

from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.translate import Translation, translate
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.serving.answer import (
    BadField,
    check_best_of,
    check_stream_options,
    sampling_config,
    token_limit,
)
from seq2chat.serving.completion import completion_head
from seq2chat.serving.engine_thread import EngineThread
from seq2chat.serving.pool import Pool
from seq2chat.serving.protocol import CompletionRequest, as_list
from seq2chat.serving.served_model import ServedModel
from seq2chat.text.text_tokenizer import TextTokenizer

BEAM = 5
BATCH_LINES = 8  # lines that are translated at once
# Limit on the tokens of a source and of a translation, because the engines wait during a batch.
MAX_LINE_TOKENS = 1024
MAX_LINES = 1000  # per request
NEUTRAL = (None, False, "", [])


async def response(
    body: CompletionRequest, model: ServedModel, engine_thread: EngineThread, encoding: Pool
) -> dict[str, Any]:
    """Return the translations of the prompts by beam search: the `n` best of each, best first.

    Lines are translated separately, and an empty line stays empty. Raises BadField for options that
    beam search cannot honor.
    """
    check_translation(body, model)
    tokenizer = model.tokenizer
    assert isinstance(model.module, Seq2Seq | Transformer)
    assert isinstance(tokenizer, TextTokenizer)
    n = body.n or 1
    texts = [prompt for prompt in as_list(body.prompt) if isinstance(prompt, str)]
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    if len(lines) > MAX_LINES:
        raise BadField(
            "prompt", f"The prompt has {len(lines):,} lines; send at most {MAX_LINES:,} at once."
        )
    await _check_lines(lines, model, encoding)
    # `translate` reads 0 as "by the source's length".
    max_length = min(token_limit(body.max_tokens, default=0), model.context - 1)
    options = {"beam": max(BEAM, n), "n_best": n, "max_length": max_length}
    translations: list[Translation] = []
    # In small batches, so that the engines step in between. A request whose client has gone ends
    # after the current batch.
    for first in range(0, len(lines), BATCH_LINES):
        batch = lines[first : first + BATCH_LINES]
        work = partial(list, translate(model.module, tokenizer, batch, **options))
        translations += await asyncio.wrap_future(engine_thread.call(work))
    choices: list[dict[str, Any]] = []
    following = iter(translations)
    for text in texts:
        by_line = [next(following) if line.strip() else None for line in text.split("\n")]
        choices += [_choice(by_line, len(choices) + i, i) for i in range(n)]
    n_read = sum(len(line.source) for line in translations)
    n_written = sum(len(h.tokens) for line in translations for h in line.hypotheses)
    counts = {
        "prompt_tokens": n_read,
        "completion_tokens": n_written,
        "total_tokens": n_read + n_written,
    }
    return completion_head(body) | {"choices": choices, "usage": counts}


def _choice(by_line: list[Translation | None], index: int, rank: int) -> dict[str, Any]:
    """Return the choice of the translations with rank `rank`. None is an empty line."""
    texts = ["" if line is None else line.texts[rank] for line in by_line]
    is_whole = all(line is None or line.hypotheses[rank].finished for line in by_line)
    return {
        "index": index,
        "text": "\n".join(texts),
        "logprobs": None,
        "finish_reason": "stop" if is_whole else "length",
    }


async def _check_lines(lines: list[str], model: ServedModel, encoding: Pool) -> None:
    """Raise BadField or ContextExceeded for a line that is too long."""
    tokenizer = model.tokenizer
    room = min(model.context - 1, MAX_LINE_TOKENS)
    for line in lines:
        model.check_size(line.strip())
    if not lines:
        return
    longest = await encoding.run(lambda: max(len(tokenizer.encode(line)) for line in lines))
    if longest > room:
        raise BadField(
            "prompt",
            f"A line has more than the {room} tokens that {model.id} reads; send sentences.",
        )


def check_translation(body: CompletionRequest, model: ServedModel) -> None:
    """Raise BadField for a request that beam search cannot honor. Neutral values are accepted."""
    sampling = sampling_config(body, 1)
    plain = SamplingConfig(1, temperature=sampling.temperature, seed=sampling.seed)
    unsupported = [
        field.name
        for field in fields(SamplingConfig)
        if getattr(sampling, field.name) != getattr(plain, field.name)
    ]
    others = ("stop", "echo", "logprobs", "return_token_ids")
    unsupported += [name for name in others if getattr(body, name) not in NEUTRAL]
    # Temperature 0 asks for the most likely text, which beam search looks for. 1 is the default.
    if sampling.temperature not in (0, 1):
        unsupported.append("temperature")
    if unsupported:
        raise BadField(
            unsupported[0],
            f"{unsupported[0]} has no meaning for {model.id}, which translates by beam search.",
        )
    check_stream_options(body)
    check_best_of(body)
    if not all(isinstance(prompt, str) for prompt in as_list(body.prompt)):
        raise BadField("prompt", f"{model.id} translates texts; send them as text, not as tokens.")
    if body.max_tokens == 0:
        raise BadField(
            "max_tokens", "max_tokens 0 is for scoring texts; a translation has at least one token."
        )
    if (body.max_tokens or 0) > MAX_LINE_TOKENS:
        raise BadField(
            "max_tokens",
            f"A translation has at most {MAX_LINE_TOKENS} tokens; write a smaller max_tokens.",
        )


async def chunks(body: CompletionRequest, content: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Yield a translation as one chunk per choice: beam search has no text before it ends."""
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    no_usage = {"usage": None} if include_usage else {}
    head = {name: value for name, value in content.items() if name not in ("choices", "usage")}
    for choice in content["choices"]:
        yield head | {"choices": [choice]} | no_usage
    if include_usage:
        yield head | {"choices": [], "usage": content["usage"]}
