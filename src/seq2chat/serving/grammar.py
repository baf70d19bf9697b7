"""Answers in JSON of a given schema, for response formats and forced tools.

Tokens that would violate the schema get probability zero, so no other answer can be drawn. The
grammar engine is llguidance.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.serving.answer import BadField
from seq2chat.serving.protocol import ChatRequest, Function, ResponseFormat, ToolChoice
from seq2chat.serving.served_model import ServedModel
from seq2chat.text.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Schema:
    """A JSON schema for an answer, its name, and the field of the request that contains it."""

    content: dict[str, Any]
    field: str
    name: str = ""


def format_schema(response_format: ResponseFormat | None) -> Schema | None:
    """Return the schema of a `response_format`, or None if it allows any text.

    Raises BadField for a `json_schema` that is missing or does not fit the type.
    """
    if response_format is None:
        return None
    json_schema = response_format.json_schema
    if response_format.type == "json_schema" and json_schema is None:
        raise BadField(
            "response_format", "response_format json_schema needs json_schema: {name, schema}."
        )
    if response_format.type != "json_schema" and json_schema is not None:
        raise BadField(
            "response_format",
            f"response_format {response_format.type} has no json_schema; write type json_schema.",
        )
    if response_format.type == "text":
        return None
    if json_schema is None:
        return Schema(ANY_OBJECT, "response_format")
    return Schema(json_schema.schema_, "response_format", json_schema.name)


def forced_function(body: ChatRequest) -> Function | None:
    """Return the function that the answer must call, or None for an answer in text.

    Raises BadField where the model would have to choose, which the models here are not trained to
    do.
    """
    tools = body.tools or []
    choice = body.tool_choice
    if choice == "none":
        return None
    if not tools:
        if isinstance(choice, ToolChoice) or choice == "required":
            raise BadField(
                "tool_choice", "tool_choice forces a call, but there are no tools; send tools."
            )
        return None
    if choice is None or choice == "auto":
        raise BadField(
            "tools",
            "The models here cannot decide whether to call a tool. Force one with tool_choice: "
            '{"type": "function", "function": {"name": ...}}, or write tool_choice: "none".',
        )
    functions = {tool.function.name: tool.function for tool in tools}
    if choice == "required" and len(functions) > 1:
        raise BadField(
            "tool_choice",
            "The models here cannot decide which tool to call; name one in tool_choice.",
        )
    name = next(iter(functions)) if isinstance(choice, str) else choice.function.name
    if name not in functions:
        raise BadField("tool_choice", f"tool_choice names {name}, which is not one of the tools.")
    return functions[name]


class Grammar:
    """Restricts one sample to the schema: a `Constraint` for the engine."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int, field: str) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._field = field

    def bias(self) -> Float[Tensor, " vocab"]:
        """Return 0 for each token that may come next and -inf for the others.

        After a complete answer, only the end token may come. Raises BadField if it turns out that
        the schema cannot be followed.
        """
        mask = self._matcher.compute_bitmask()
        try:
            # After an error the mask would allow the end token alone, as if the answer were
            # complete.
            _check(self._matcher)
        except ValueError as error:
            raise BadField(
                self._field, f"The schema cannot be followed any further: {error}."
            ) from None
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: self._vocab_size]).bool()
        return torch.zeros(self._vocab_size).masked_fill(~allowed, -torch.inf)

    def accept(self, token: int) -> None:
        """Advance by a token that was drawn."""
        self._matcher.consume_token(token)


def grammars(
    schema: Schema | None, model: ServedModel, n: int, prefix: Sequence[int]
) -> list[Grammar]:
    """Return one grammar per sample, after the tokens `prefix` of the answer.

    Without a schema the list is empty. Raises BadField for a schema that cannot be followed, for a
    prefix that does not fit it, and if llguidance is not installed.
    """
    if schema is None:
        return []
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise BadField(
            schema.field, "JSON needs llguidance: pip install 'seq2chat[json]'."
        ) from None
    assert isinstance(model.tokenizer, TextTokenizer)
    vocab_size = model.module.config.vocab_size
    tokenizer = _tokenizer(model.tokenizer.json, vocab_size, model.end_tokens[0])
    try:
        # No white space between the parts: a small model might never stop writing it.
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(schema.content), defaults={"whitespace_flexible": False}
        )
        matcher = LLMatcher(tokenizer, grammar)
        _check(matcher)
        # The error of a schema that only refers to itself appears with the first token.
        matcher.compute_bitmask()
        _check(matcher)
    # The schema is nested too deeply, or has text that is not UTF-8.
    except (ValueError, RecursionError) as error:
        name = schema.name and f" {schema.name}"
        raise BadField(schema.field, f"The schema{name} cannot be followed: {error}.") from None
    if prefix and not matcher.consume_tokens(list(prefix)):
        raise BadField("prefix_token_ids", "The beginning of the answer does not fit the schema.")
    return [Grammar(matcher.deep_copy(), vocab_size, schema.field) for _ in range(n)]


def _check(matcher: "LLMatcher") -> None:
    """Raise ValueError for a grammar with an error."""
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().partition("<state>")[0].split()).rstrip("."))


@lru_cache(maxsize=8)
def _tokenizer(tokenizer_json: str, vocab_size: int, end_token: int) -> "LLTokenizer":
    from llguidance import LLTokenizer

    return LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=end_token)
