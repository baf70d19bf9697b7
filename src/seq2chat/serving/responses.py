"""`POST /v1/responses`: OpenAI's newer form of a chat, for text."""

import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError

from seq2chat.generation.tokens import Token
from seq2chat.serving.answer import Answer, BadField
from seq2chat.serving.chat import new_id, usage
from seq2chat.serving.protocol import ChatRequest
from seq2chat.serving.responses_protocol import ResponseMessage, ResponsesRequest


def as_chat(body: ResponsesRequest) -> ChatRequest:
    """Return the chat request with the same answer.

    Raises BadField for a field that a chat request cannot express.
    """
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = body.input
    if isinstance(items, str):
        items = [ResponseMessage(role="user", content=items)]
    messages: list[dict[str, Any]] = []
    for item in items:
        text = item.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        messages.append({"role": item.role, "content": text})
    if body.max_output_tokens == 0:
        raise BadField(
            "max_output_tokens", "max_output_tokens is 0; write a positive number, or leave it out."
        )
    response_format = None
    text_format = None if body.text is None else body.text.format
    if text_format is not None:
        schema = None
        if text_format.type == "json_schema":
            content = text_format.schema_ or {"type": "object"}
            schema = {"name": text_format.name or "answer", "schema": content}
        response_format = {"type": text_format.type, "json_schema": schema}
    fields = {
        "model": body.model,
        "messages": [*instructions, *messages],
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
        "response_format": response_format,
    }
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _bad_field(error, len(instructions)) from None


def _bad_field(error: ValidationError, n_instructions: int) -> BadField:
    """Return an error of a chat request as an error of the response request it was made from."""
    first = error.errors(include_url=False)[0]
    name, *rest = first["loc"]
    names = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
    }
    place = names.get(str(name), str(name))
    if name == "messages" and rest:
        number = int(rest[0]) - n_instructions
        place = f"input[{number}].content" if number >= 0 else "instructions"
    elif name == "messages" and n_instructions:
        place = "input, with the instructions as one of its messages"
    message = first["msg"]
    return BadField(place.partition(",")[0], f"{place}: {message[:1].lower()}{message[1:]}.")


class ResponseObject:
    """The `response` object, which a stream sends before and after the model writes."""

    def __init__(self, body: ResponsesRequest, answer: Answer) -> None:
        self._body = body
        self._answer = answer
        self.id = new_id("resp")
        self.item_id = new_id("msg")
        self._created = int(time.time())

    def message(self, text: str | None, status: str) -> dict[str, Any]:
        """Return the message of the output, with no content where `text` is None."""
        content = [] if text is None else [self.part(text)]
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def part(self, text: str) -> dict[str, Any]:
        """Return the content of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def begun(self) -> dict[str, Any]:
        """Return the object before there is a text."""
        return self._object("in_progress", [], None)

    def complete(self, text: str, finish: str | None) -> dict[str, Any]:
        """Return the object with its text. `finish` is the engine's finish reason."""
        status = "incomplete" if finish == "length" else "completed"
        counts = usage([self._answer])
        response_usage = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        return self._object(status, [self.message(text, status)], response_usage)

    def _object(
        self, status: str, output: list[dict[str, Any]], response_usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        body = self._body
        sampling = self._answer.sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "tool_choice": "none",
            "tools": [],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "metadata": body.metadata or {},
            "usage": response_usage,
            "store": False,
        }


def response(body: ResponsesRequest, answer: Answer, samples: list[list[Token]]) -> dict[str, Any]:
    """Return the `response` object for the tokens of the only sample."""
    [tokens] = samples
    text = "".join(token.text for token in tokens)
    return ResponseObject(body, answer).complete(text, tokens[-1].finish)


async def events(body: ResponsesRequest, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """Yield OpenAI's events of a response while it is written."""
    reply = ResponseObject(body, answer)
    number = 0

    def event(kind: str, **fields: Any) -> dict[str, Any]:
        nonlocal number
        content = {"type": f"response.{kind}", "sequence_number": number, **fields}
        number += 1
        return content

    place = {"item_id": reply.item_id, "output_index": 0, "content_index": 0}
    yield event("created", response=reply.begun())
    yield event("in_progress", response=reply.begun())
    yield event("output_item.added", output_index=0, item=reply.message(None, "in_progress"))
    yield event("content_part.added", **place, part=reply.part(""))
    text = ""
    finish = None
    async for token in answer.tokens():
        finish = token.finish
        if token.text:
            text += token.text
            yield event("output_text.delta", **place, delta=token.text, logprobs=[])
    yield event("output_text.done", **place, text=text, logprobs=[])
    yield event("content_part.done", **place, part=reply.part(text))
    complete = reply.complete(text, finish)
    yield event("output_item.done", output_index=0, item=complete["output"][0])
    yield event(complete["status"], response=complete)
