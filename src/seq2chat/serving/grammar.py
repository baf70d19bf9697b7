"""Answers that are JSON of a schema, because no other token can be drawn (llguidance): formats and
forced tools."""

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
from seq2chat.serving.served_model import Served
from seq2chat.text.byte_bpe import ByteBPE

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Schema:
    """A JSON schema that an answer follows, its name, and the field of the request that it is
    in."""

    content: dict[str, Any]
    field: str
    name: str = ""


def format_schema(asked: ResponseFormat | None) -> Schema | None:
    """Return the schema of a `response_format`, and None where any text may be said.

    Raises BadField for a `json_schema` of another type.
    """
    if asked is None:
        return None
    named = asked.json_schema
    if asked.type == "json_schema" and named is None:
        raise BadField(
            "response_format", "response_format json_schema needs json_schema: {name, schema}."
        )
    if asked.type != "json_schema" and named is not None:
        raise BadField(
            "response_format",
            f"response_format {asked.type} has no json_schema; write type json_schema.",
        )
    if asked.type == "text":
        return None
    if named is None:
        return Schema(ANY_OBJECT, "response_format")
    return Schema(named.schema_, "response_format", named.name)


def forced_function(asked: ChatRequest) -> Function | None:
    """Return the function that the answer must call, and None for an answer in text.

    Raises BadField where the model would have to decide whether to call one, which it has not
    learned.
    """
    tools, choice = asked.tools or [], asked.tool_choice
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
        raise BadField("tool_choice", f"tool_choice names {name}, which is none of the tools.")
    return functions[name]


class Grammar:
    """The tokens that one sample may still draw: an engine's `Constraint`."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int, field: str) -> None:
        self._matcher, self._vocab_size, self._field = matcher, vocab_size, field

    def bias(self) -> Float[Tensor, " vocab"]:
        """Return 0 for each token that may come next and -inf for the others; at its end, for all
        but the end token.

        Raises BadField where the schema proves to be one that cannot be followed.
        """
        mask = self._matcher.compute_bitmask()
        try:
            # Whose mask would allow the end token alone, as if the answer were complete.
            _check(self._matcher)
        except ValueError as error:
            raise BadField(
                self._field, f"The schema cannot be followed any further: {error}."
            ) from None
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: self._vocab_size]).bool()
        return torch.zeros(self._vocab_size).masked_fill(~allowed, -torch.inf)

    def accept(self, token: int) -> None:
        """Note that `token` was said."""
        self._matcher.consume_token(token)


def grammars(schema: Schema | None, served: Served, n: int, begun: Sequence[int]) -> list[Grammar]:
    """Return a grammar for each of `n` samples whose answer begins with the tokens `begun`; none
    without a schema.

    Raises BadField for a schema that cannot be followed, a beginning that does not fit it, and
    without llguidance.
    """
    if schema is None:
        return []
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise BadField(
            schema.field, "JSON needs llguidance: pip install 'seq2chat[json]'."
        ) from None
    assert isinstance(served.tokenizer, ByteBPE)
    vocab_size = served.model.config.vocab_size
    tokenizer = _tokenizer(served.tokenizer.json, vocab_size, served.end_tokens[0])
    try:
        # Without white space between its parts, of which a small model may say too much.
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(schema.content), defaults={"whitespace_flexible": False}
        )
        matcher = LLMatcher(tokenizer, grammar)
        _check(matcher)
        # A schema that refers to nothing but itself is found out with the first token.
        matcher.compute_bitmask()
        _check(matcher)
    # It nests too deeply, or has text that is no UTF-8.
    except (ValueError, RecursionError) as error:
        name = schema.name and f" {schema.name}"
        raise BadField(schema.field, f"The schema{name} cannot be followed: {error}.") from None
    if begun and not matcher.consume_tokens(list(begun)):
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
