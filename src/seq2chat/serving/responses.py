"""`POST /v1/responses`: OpenAI's newer form of a chat, for text."""

import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError

from seq2chat.serving.answer import Answer, BadField, Piece
from seq2chat.serving.chat import new_id, usage
from seq2chat.serving.protocol import ChatRequest, ResponseMessage, ResponsesRequest


def as_chat(asked: ResponsesRequest) -> ChatRequest:
    """Return the chat request with the same answer. Raises BadField for what a chat cannot hold."""
    given = (
        [ResponseMessage(role="user", content=asked.input)]
        if isinstance(asked.input, str)
        else asked.input
    )
    instructions = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    messages: list[dict[str, Any]] = []
    for item in given:
        text = (
            item.content
            if isinstance(item.content, str)
            else "".join(part.text for part in item.content)
        )
        messages.append({"role": item.role, "content": text})
    if asked.max_output_tokens == 0:
        raise BadField(
            "max_output_tokens", "max_output_tokens is 0; write a positive number, or leave it out."
        )
    form = None if asked.text is None else asked.text.format
    schema = None
    if form is not None and form.type == "json_schema":
        schema = {"name": form.name or "answer", "schema": form.schema_ or {"type": "object"}}
    fields = {
        "model": asked.model,
        "messages": [*instructions, *messages],
        "max_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "stream": asked.stream,
        "response_format": None if form is None else {"type": form.type, "json_schema": schema},
    }
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _bad_field(error, len(instructions)) from None


def _bad_field(error: ValidationError, n_instructions: int) -> BadField:
    """Return the error of a chat request, about the field of the response request that it is made
    of."""
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


class Reply:
    """The `response` object, as it stands before, while and after the model writes."""

    def __init__(self, asked: ResponsesRequest, answer: Answer) -> None:
        self._asked, self._answer = asked, answer
        self.id, self.item_id = new_id("resp"), new_id("msg")
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
        """Return the object with its text; `finish` is the engine's reason for its end."""
        status = "incomplete" if finish == "length" else "completed"
        counts = usage([self._answer])
        used = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        return self._object(status, [self.message(text, status)], used)

    def _object(
        self, status: str, output: list[dict[str, Any]], used: dict[str, Any] | None
    ) -> dict[str, Any]:
        asked, sampling = self._asked, self._answer.sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "tool_choice": "none",
            "tools": [],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "metadata": asked.metadata or {},
            "usage": used,
            "store": False,
        }


def whole(asked: ResponsesRequest, answer: Answer, samples: list[list[Piece]]) -> dict[str, Any]:
    """Return the `response` object."""
    [pieces] = samples
    text = "".join(piece.text for piece in pieces)
    return Reply(asked, answer).complete(text, pieces[-1].token.finish)


async def events(asked: ResponsesRequest, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """Yield OpenAI's events of a response that is written."""
    reply = Reply(asked, answer)
    number = 0

    def event(kind: str, **fields: Any) -> dict[str, Any]:
        nonlocal number
        made = {"type": f"response.{kind}", "sequence_number": number, **fields}
        number += 1
        return made

    place = {"item_id": reply.item_id, "output_index": 0, "content_index": 0}
    yield event("created", response=reply.begun())
    yield event("in_progress", response=reply.begun())
    yield event("output_item.added", output_index=0, item=reply.message(None, "in_progress"))
    yield event("content_part.added", **place, part=reply.part(""))
    text, finish = "", None
    async for piece in answer.pieces():
        finish = piece.token.finish
        if piece.text:
            text += piece.text
            yield event("output_text.delta", **place, delta=piece.text, logprobs=[])
    yield event("output_text.done", **place, text=text, logprobs=[])
    yield event("content_part.done", **place, part=reply.part(text))
    made = reply.complete(text, finish)
    yield event("output_item.done", output_index=0, item=made["output"][0])
    yield event(made["status"], response=made)
