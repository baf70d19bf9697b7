"""`POST /v1/chat/completions`: OpenAI's request to a prompt, and pieces of text to OpenAI's answer or its chunks."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.generation.request import Token
from seq2chat.serving.answer import Answer, BadField, check_stream_options, sampling_config, stop_strings
from seq2chat.serving.grammar import grammars
from seq2chat.serving.protocol import ChatMessage, ChatRequest
from seq2chat.serving.served import Served
from seq2chat.text.chat import Message, prompt_ids, read_messages
from seq2chat.text.tokenizer import Tokenizer


def chat_answer(asked: ChatRequest, served: Served, salt: str) -> Answer:
    """Return the answer to be made. Raises BadField or UserError for what the model cannot do."""
    tokenizer = served.tokenizer
    check(
        served.can_chat,
        f"{served.id} has not learned to chat; use /v1/completions with it, or fine-tune it: seq2chat sft.",
    )
    assert isinstance(tokenizer, Tokenizer)
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise BadField("max_tokens", "Give max_tokens or max_completion_tokens, not both.")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise BadField("top_logprobs", "top_logprobs needs logprobs: true.")
    check_stream_options(asked)
    messages = conversation(asked.messages)
    if messages[-1].role != "user":
        raise BadField(
            "messages",
            "The last message is not the user's; to go on with an answer, send its tokens as prefix_token_ids.",
        )
    for message in messages:
        served.check_size(message.content)
    prompt = [*prompt_ids(tokenizer, messages), *(asked.prefix_token_ids or [])]
    sampling = sampling_config(asked, asked.max_tokens or asked.max_completion_tokens or served.context)
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    n = asked.n or 1
    allowed = grammars(asked.response_format, served, n, asked.prefix_token_ids or [])
    return Answer(served, prompt, sampling, n, stop_strings(asked), top, constraints=allowed, salt=salt)


def conversation(messages: list[ChatMessage]) -> list[Message]:
    """Return the messages as ours. Raises BadField for turns in an order that training never showed."""
    rows = []
    for message in messages:
        content = message.content if isinstance(message.content, str) else "".join(p.text for p in message.content)
        rows.append({"role": "system" if message.role == "developer" else message.role, "content": content})
    try:
        return read_messages(rows, "messages")
    except UserError as error:
        raise BadField("messages", str(error)) from None


def new_id(prefix: str) -> str:
    """Return an id that no other answer has."""
    return f"{prefix}-{secrets.token_hex(12)}"


def usage(answers: list[Answer]) -> dict[str, Any]:
    """Return what was read and written."""
    prompt, written = sum(len(a.prompt) for a in answers), sum(a.n_generated for a in answers)
    cached = sum(a.read.cached for a in answers if a.read is not None)
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def token_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """Return one entry of OpenAI's log probabilities; a control token has a name but no bytes."""
    is_control = token_id in tokenizer.control.values()
    raw = tokenizer.token_bytes(token_id)
    return {
        "token": raw.decode("utf-8", "replace"), "token_id": token_id, "logprob": max(logprob, -9999.0),
        "bytes": [] if is_control else list(raw),
    }  # fmt: skip


def _logprobs(answer: Answer, tokens: list[Token]) -> dict[str, Any] | None:
    if answer.logprobs is None:
        return None
    tokenizer = answer.served.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    content = [
        token_entry(tokenizer, token.id, token.logprob or 0.0)
        | {"top_logprobs": [token_entry(tokenizer, *likely) for likely in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


async def whole(asked: ChatRequest, answer: Answer) -> dict[str, Any]:
    """Return the `chat.completion` object."""
    choices = []
    for index, pieces in enumerate(await answer.wait()):
        tokens, text = [piece.token for piece in pieces], "".join(piece.text for piece in pieces)
        choice: dict[str, Any] = {
            "index": index, "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(answer, tokens), "finish_reason": tokens[-1].finish,
        }  # fmt: skip
        if asked.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
        choices.append(choice)
    made: dict[str, Any] = {
        "id": new_id("chatcmpl"), "object": "chat.completion", "created": int(time.time()), "model": asked.model,
        "choices": choices, "usage": usage([answer]),
    }  # fmt: skip
    return made | ({"prompt_token_ids": answer.prompt} if asked.return_token_ids else {})


async def chunks(asked: ChatRequest, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """Yield the `chat.completion.chunk` objects: who speaks, then each text that may be shown, then the usage."""
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    head: dict[str, Any] = {
        "id": new_id("chatcmpl"), "object": "chat.completion.chunk", "created": int(time.time()), "model": asked.model
    }  # fmt: skip
    nothing = {"usage": None} if include_usage else {}

    def choice(index: int, delta: dict[str, Any], tokens: list[Token]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(answer, tokens) if tokens else None,
        }
        made["finish_reason"] = tokens[-1].finish if tokens else None
        return made | ({"token_ids": [token.id for token in tokens]} if asked.return_token_ids else {})

    opening = [choice(i, {"role": "assistant", "content": ""}, []) for i in range(answer.n)]
    prompt = {"prompt_token_ids": answer.prompt} if asked.return_token_ids else {}
    yield head | {"choices": opening} | nothing | prompt
    shown_anyway = asked.return_token_ids or answer.logprobs is not None
    async for piece in answer.pieces():
        if piece.text or piece.token.finish or shown_anyway:
            delta = {"content": piece.text} if piece.text else {}
            yield head | {"choices": [choice(piece.token.sample, delta, [piece.token])]} | nothing
    if include_usage:
        yield head | {"choices": [], "usage": usage([answer])}
