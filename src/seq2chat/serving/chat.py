"""`POST /v1/chat/completions`: OpenAI's request to a prompt, and tokens to OpenAI's answer."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
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
from seq2chat.serving.grammar import Schema, forced_function, format_schema, grammars
from seq2chat.serving.protocol import ChatMessage, ChatRequest, Function
from seq2chat.serving.served_model import ServedModel
from seq2chat.text.chat import Message, n_begun_tokens, prompt_ids
from seq2chat.text.text_tokenizer import TextTokenizer


def chat_answer(body: ChatRequest, model: ServedModel, salt: str) -> Answer:
    """Return the answer, ready to be submitted.

    Raises BadField or UserError for a request that the model cannot serve.
    """
    tokenizer = model.tokenizer
    check(
        model.can_chat,
        f"{model.id} has not learned to chat; use /v1/completions with it, or fine-tune it: "
        "seq2chat sft.",
    )
    assert isinstance(tokenizer, TextTokenizer)
    for field in ("max_tokens", "max_completion_tokens"):
        if getattr(body, field) == 0:
            raise BadField(field, f"{field} is 0; write a positive number, or leave it out.")
    if body.top_logprobs and not body.logprobs:
        raise BadField("top_logprobs", "top_logprobs needs logprobs: true.")
    check_stream_options(body)
    check_best_of(body)
    messages = conversation(body.messages)
    model.check_size(*(message.content for message in messages))
    prefix = body.prefix_token_ids or []
    prompt = [*prompt_ids(tokenizer, messages), *prefix]
    # The answer may have begun already: with a last message of the assistant, the prefix, or both.
    n_begun = n_begun_tokens(tokenizer, messages) + len(prefix)
    max_tokens = token_limit(body.max_tokens, body.max_completion_tokens, default=model.context)
    n = body.n or 1
    return Answer(
        model=model,
        prompt=prompt,
        sampling=sampling_config(body, max_tokens),
        n=n,
        stop=stop_strings(body),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraints=grammars(_schema(body), model, n, prompt[len(prompt) - n_begun :]),
        salt=salt,
        n_begun=n_begun,
    )


def _schema(body: ChatRequest) -> Schema | None:
    """Return the schema of the answer, from the arguments of a forced function or the format."""
    function = forced_function(body)
    schema = format_schema(body.response_format)
    if function is None:
        return schema
    if schema is not None:
        raise BadField(
            "response_format", "An answer calls a function or has a response_format, not both."
        )
    parameters = function.parameters or {"type": "object", "properties": {}}
    return Schema(parameters, "tools", function.name)


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the messages in this package's form. A system message without text is left out.

    Raises BadField for a message without content, unless it is the assistant's.
    """
    converted = []
    for number, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise BadField(
                f"messages[{number}].content", f"messages[{number}] has no content; write a text."
            )
        if isinstance(message.content, str):
            texts = [message.content]
        else:
            texts = [part.text for part in message.content or []]
        # The arguments of a call are the text that the model wrote for it.
        texts += [call.function.arguments for call in message.tool_calls or []]
        content = "".join(texts)
        role = "system" if message.role == "developer" else message.role
        if role != "system" or content.strip():
            converted.append(Message(role, content))
    return converted


def new_id(prefix: str) -> str:
    """Return an id that no other answer has."""
    return f"{prefix}-{secrets.token_hex(12)}"


def usage(answers: list[Answer]) -> dict[str, Any]:
    """Return the `usage` object: the numbers of tokens read and written."""
    n_prompt = sum(len(answer.prompt) for answer in answers)
    n_generated = sum(answer.n_generated for answer in answers)
    n_cached = sum(a.prompt_read.cached for a in answers if a.prompt_read is not None)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


def _logprobs(answer: Answer, tokens: list[Token]) -> dict[str, Any] | None:
    if answer.logprobs is None:
        return None
    entry = answer.model.token_names.entry
    content = []
    for token in tokens:
        top = [entry(token_id, logprob) for token_id, logprob in token.top]
        content.append(entry(token.id, token.logprob or 0.0) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _call(function: Function, arguments: str) -> dict[str, Any]:
    """Return a call of `function` in OpenAI's form."""
    return {
        "id": new_id("call"),
        "type": "function",
        "function": {"name": function.name, "arguments": arguments},
    }


def _finish(body: ChatRequest, token: Token) -> str | None:
    """Return OpenAI's finish reason.

    It is "tool_calls" if the model had to choose a tool, and "stop" if the client named it.
    """
    if body.tool_choice == "required" and token.finish == "stop":
        return "tool_calls"
    return token.finish


def response(body: ChatRequest, answer: Answer, samples: list[list[Token]]) -> dict[str, Any]:
    """Return the `chat.completion` object for the tokens of all samples."""
    function = forced_function(body)
    choices = []
    for index, tokens in enumerate(samples):
        text = "".join(token.text for token in tokens)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if function is not None:
            message |= {"content": None, "tool_calls": [_call(function, text)]}
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": _logprobs(answer, tokens),
            "finish_reason": _finish(body, tokens[-1]),
        }
        if body.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
        choices.append(choice)
    content: dict[str, Any] = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": choices,
        "usage": usage([answer]),
    }
    if body.return_token_ids:
        content["prompt_token_ids"] = answer.prompt
    return content


async def chunks(body: ChatRequest, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """Yield the `chat.completion.chunk` objects: the role, then each text, then the usage."""
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    function = forced_function(body)
    head: dict[str, Any] = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
    }
    # With a usage at the end, OpenAI sends null in the chunks before it.
    no_usage = {"usage": None} if include_usage else {}

    first: dict[str, Any] = {"role": "assistant", "content": ""}
    if function is not None:
        call = {"index": 0} | _call(function, "")
        first = {"role": "assistant", "content": None, "tool_calls": [call]}
    prompt = {"prompt_token_ids": answer.prompt} if body.return_token_ids else {}
    choices = [_chunk_choice(body, answer, index, first, []) for index in range(answer.n)]
    yield head | {"choices": choices} | no_usage | prompt

    sends_every_token = body.return_token_ids or answer.logprobs is not None
    async for token in answer.tokens():
        if token.text or token.finish or sends_every_token:
            delta: dict[str, Any] = {}
            if token.text and function is None:
                delta = {"content": token.text}
            elif token.text:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": token.text}}]}
            choice = _chunk_choice(body, answer, token.sample, delta, [token])
            yield head | {"choices": [choice]} | no_usage
    if include_usage:
        yield head | {"choices": [], "usage": usage([answer])}


def _chunk_choice(
    body: ChatRequest, answer: Answer, index: int, delta: dict[str, Any], tokens: list[Token]
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "delta": delta,
        "logprobs": _logprobs(answer, tokens) if tokens else None,
        "finish_reason": _finish(body, tokens[-1]) if tokens else None,
    }
    if body.return_token_ids:
        choice["token_ids"] = [token.id for token in tokens]
    return choice
