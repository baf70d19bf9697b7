"""`POST /v1/chat/completions`: OpenAI's request to a prompt, and pieces of text to OpenAI's answer
or its chunks."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from seq2chat.config import check
from seq2chat.generation.request import Token
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
from seq2chat.serving.grammar import Schema, forced_function, format_schema, grammars
from seq2chat.serving.protocol import ChatMessage, ChatRequest, Function
from seq2chat.serving.served_model import Served
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import Message, begun_answer, prompt_ids


def chat_answer(asked: ChatRequest, served: Served, salt: str) -> Answer:
    """Return the answer to be made. Raises BadField or UserError for what the model cannot do."""
    tokenizer = served.tokenizer
    check(
        served.can_chat,
        f"{served.id} has not learned to chat; use /v1/completions with it, or fine-tune it: "
        "seq2chat sft.",
    )
    assert isinstance(tokenizer, ByteBPE)
    for field in ("max_tokens", "max_completion_tokens"):
        if getattr(asked, field) == 0:
            raise BadField(field, f"{field} is 0; write a positive number, or leave it out.")
    if asked.top_logprobs and not asked.logprobs:
        raise BadField("top_logprobs", "top_logprobs needs logprobs: true.")
    check_stream_options(asked)
    check_best_of(asked)
    messages = conversation(asked.messages)
    served.check_size(*(message.content for message in messages))
    prompt = [*prompt_ids(tokenizer, messages), *(asked.prefix_token_ids or [])]
    # The answer may have begun already: with a last message of the assistant, the prefix, or both.
    n_begun = len(tokenizer.encode(begun_answer(messages))) + len(asked.prefix_token_ids or [])
    sampling = sampling_config(
        asked, one_limit(asked.max_tokens, asked.max_completion_tokens, at_most=served.context)
    )
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    n = asked.n or 1
    allowed = grammars(_schema(asked), served, n, prompt[len(prompt) - n_begun :])
    return Answer(
        served,
        prompt,
        sampling,
        n,
        stop_strings(asked),
        top,
        constraints=allowed,
        salt=salt,
        n_begun=n_begun,
    )


def _schema(asked: ChatRequest) -> Schema | None:
    """Return the schema of the answer: that of a forced function's arguments, or of
    `response_format`."""
    function, schema = forced_function(asked), format_schema(asked.response_format)
    if function is None:
        return schema
    if schema is not None:
        raise BadField(
            "response_format", "An answer calls a function or has a response_format, not both."
        )
    return Schema(
        function.parameters or {"type": "object", "properties": {}}, "tools", function.name
    )


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the messages as ours, in their order. A system message without text is left out.

    Raises BadField for a message without content that is not the assistant's.
    """
    made = []
    for number, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise BadField(
                f"messages[{number}].content", f"messages[{number}] has no content; write a text."
            )
        parts = (
            [message.content]
            if isinstance(message.content, str)
            else [p.text for p in message.content or []]
        )
        # The model wrote the arguments of a call, and nothing else.
        content = "".join([*parts, *(call.function.arguments for call in message.tool_calls or [])])
        role = "system" if message.role == "developer" else message.role
        if role != "system" or content.strip():
            made.append(Message(role, content))
    return made


def new_id(prefix: str) -> str:
    """Return an id that no other answer has."""
    return f"{prefix}-{secrets.token_hex(12)}"


def usage(answers: list[Answer]) -> dict[str, Any]:
    """Return what was read and written."""
    prompt, written = sum(len(a.prompt) for a in answers), sum(a.n_generated for a in answers)
    cached = sum(a.read.cached for a in answers if a.read is not None)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _logprobs(answer: Answer, tokens: list[Token]) -> dict[str, Any] | None:
    if answer.logprobs is None:
        return None
    entry = answer.served.token_names.entry
    content = [
        entry(token.id, token.logprob or 0.0)
        | {"top_logprobs": [entry(*likely) for likely in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _call(function: Function, arguments: str) -> dict[str, Any]:
    """Return a call of `function` as OpenAI writes it."""
    return {
        "id": new_id("call"),
        "type": "function",
        "function": {"name": function.name, "arguments": arguments},
    }


def _finish(asked: ChatRequest, token: Token) -> str | None:
    """Return OpenAI's reason: "tool_calls" where the model had to choose a tool, "stop" where the
    client named it."""
    return (
        "tool_calls" if asked.tool_choice == "required" and token.finish == "stop" else token.finish
    )


def whole(asked: ChatRequest, answer: Answer, samples: list[list[Piece]]) -> dict[str, Any]:
    """Return the `chat.completion` object of the pieces of all samples."""
    choices = []
    function = forced_function(asked)
    for index, pieces in enumerate(samples):
        tokens = [piece.token for piece in pieces]
        text = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if function is not None:
            message |= {"content": None, "tool_calls": [_call(function, text)]}
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": _logprobs(answer, tokens),
            "finish_reason": _finish(asked, tokens[-1]),
        }
        if asked.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
        choices.append(choice)
    made: dict[str, Any] = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
        "choices": choices,
        "usage": usage([answer]),
    }
    return made | ({"prompt_token_ids": answer.prompt} if asked.return_token_ids else {})


async def chunks(asked: ChatRequest, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """Yield the `chat.completion.chunk` objects: who speaks, then each text that may be shown, then
    the usage."""
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    function = forced_function(asked)
    head: dict[str, Any] = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": asked.model,
    }
    nothing = {"usage": None} if include_usage else {}

    def choice(index: int, delta: dict[str, Any], tokens: list[Token]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(answer, tokens) if tokens else None,
        }
        made["finish_reason"] = _finish(asked, tokens[-1]) if tokens else None
        return made | (
            {"token_ids": [token.id for token in tokens]} if asked.return_token_ids else {}
        )

    def first() -> dict[str, Any]:
        if function is None:
            return {"role": "assistant", "content": ""}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"index": 0} | _call(function, "")],
        }

    def more(text: str) -> dict[str, Any]:
        return (
            {"content": text}
            if function is None
            else {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        )

    prompt = {"prompt_token_ids": answer.prompt} if asked.return_token_ids else {}
    yield head | {"choices": [choice(i, first(), []) for i in range(answer.n)]} | nothing | prompt
    shown_anyway = asked.return_token_ids or answer.logprobs is not None
    async for piece in answer.pieces():
        if piece.text or piece.token.finish or shown_anyway:
            delta = more(piece.text) if piece.text else {}
            yield head | {"choices": [choice(piece.token.sample, delta, [piece.token])]} | nothing
    if include_usage:
        yield head | {"choices": [], "usage": usage([answer])}
