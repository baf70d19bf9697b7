"""`response_format`: an answer that is JSON, or JSON of a schema, because no other token can be drawn (llguidance)."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.serving.answer import BadField
from seq2chat.serving.protocol import ResponseFormat
from seq2chat.serving.served import Served
from seq2chat.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT = {"type": "object"}


class Grammar:
    """What one sample may still say: an engine's `Constraint`."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def bias(self) -> Float[Tensor, " vocab"]:
        """Return 0 for each token that may come next and -inf for the others; at its end, for all but the end token.

        Raises BadField where the schema proves to be one that cannot be followed.
        """
        mask = self._matcher.compute_bitmask()
        try:
            _check(self._matcher)  # whose mask would allow the end token alone, as if the answer were complete
        except ValueError as error:
            raise BadField("response_format", f"The schema cannot be followed any further: {error}.") from None
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: self._vocab_size]).bool()
        return torch.zeros(self._vocab_size).masked_fill(~allowed, -torch.inf)

    def accept(self, token: int) -> None:
        """Note that `token` was said."""
        self._matcher.consume_token(token)


def grammars(asked: ResponseFormat | None, served: Served, n: int, begun: Sequence[int]) -> list[Grammar]:
    """Return a grammar for each of `n` samples whose answer begins with the tokens `begun`; none where all may be said.

    Raises BadField for a schema that cannot be followed, a beginning that does not fit it, and without llguidance.
    """
    if asked is None:
        return []
    named = asked.json_schema
    if asked.type == "json_schema" and named is None:
        raise BadField("response_format", "response_format json_schema needs json_schema: {name, schema}.")
    if asked.type != "json_schema" and named is not None:
        raise BadField("response_format", f"response_format {asked.type} has no json_schema; write type json_schema.")
    if asked.type == "text":
        return []
    schema: dict[str, Any] = ANY_OBJECT if named is None else named.schema_
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise BadField("response_format", "JSON needs llguidance: pip install 'seq2chat[json]'.") from None
    assert isinstance(served.tokenizer, Tokenizer)
    vocab_size = served.model.config.vocab_size
    tokenizer = _tokenizer(served.tokenizer.json, vocab_size, served.end_tokens[0])
    try:
        # Without white space between its parts, of which a small model may say too much.
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_flexible": False})
        matcher = LLMatcher(tokenizer, grammar)
        _check(matcher)
        matcher.compute_bitmask()  # a schema that refers to nothing but itself is found out with the first token
        _check(matcher)
    except (ValueError, RecursionError) as error:  # it nests too deeply, or has text that is no UTF-8
        name = "" if named is None else f" {named.name}"
        raise BadField("response_format", f"The schema{name} cannot be followed: {error}.") from None
    if begun and not matcher.consume_tokens(list(begun)):
        raise BadField("prefix_token_ids", "The beginning of the answer does not fit the schema.")
    return [Grammar(matcher.deep_copy(), vocab_size) for _ in range(n)]


def _check(matcher: "LLMatcher") -> None:
    """Raise ValueError for a grammar with an error."""
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().partition("<state>")[0].split()).rstrip("."))


@lru_cache(maxsize=8)
def _tokenizer(tokenizer_json: str, vocab_size: int, end_token: int) -> "LLTokenizer":
    from llguidance import LLTokenizer

    return LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=end_token)
