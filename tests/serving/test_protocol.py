"""Requests are validated quickly, with any number of errors."""

import pytest
from pydantic import ValidationError

from seq2chat.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
)
from seq2chat.serving.responses_protocol import ResponsesRequest


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]]])
def test_a_prompt_is_text_tokens_or_several(prompt):
    assert CompletionRequest(model="m", prompt=prompt).prompt == prompt


@pytest.mark.parametrize("prompt", [[-1] * 90_000, [[-1] * 90_000], ["a", 1], [""] * 129, [[]], []])
def test_one_mistake_is_told_for_each_form_of_a_prompt(prompt):
    with pytest.raises(ValidationError) as raised:
        CompletionRequest(model="m", prompt=prompt)
    assert raised.value.error_count() <= 4


USER = {"role": "user", "content": "a"}
UNKNOWN = {f"k{i}": 0 for i in range(85_000)}
PARTS = [{"a": 1}] * 128
KINDS = {
    ChatRequest: {"model": "m", "messages": [USER]},
    ResponsesRequest: {"model": "m", "input": [USER]},
    CompletionRequest: {"model": "m", "prompt": "a"},
    TokenizeRequest: {"model": "m", "messages": [USER]},
}
BAD = [
    *((kind, UNKNOWN) for kind in KINDS),
    (ChatRequest, {"messages": [USER | UNKNOWN]}),
    (ChatRequest, {"messages": [{"role": "x", "content": PARTS}] * 999}),
    (ChatRequest, {"messages": [USER | {"tool_calls": [{}] * 50_000}]}),
    (ChatRequest, {"messages": [USER | {"content": [{"type": "text", "text": "a", **UNKNOWN}]}]}),
    (ChatRequest, {"messages": [{}] * 100_000}),
    (ChatRequest, {"tools": [{"a": 1}] * 128}),
    (ChatRequest, {"tool_choice": UNKNOWN}),
    (ChatRequest, {"response_format": UNKNOWN}),
    (ChatRequest, {"stop": [1] * 50_000}),
    (ChatRequest, {"logit_bias": {str(i): "x" for i in range(60_000)}}),
    (ResponsesRequest, {"input": [{"role": "x", "content": PARTS}] * 999}),
    (ResponsesRequest, {"input": [USER | UNKNOWN]}),
    (ResponsesRequest, {"reasoning": UNKNOWN, "text": {"format": UNKNOWN}}),
    (TokenizeRequest, {"messages": [{"role": "x", "content": PARTS}] * 999}),
]


@pytest.mark.parametrize(("kind", "fields"), BAD)
def test_a_request_with_many_mistakes_has_few_errors(kind, fields):
    """Each error costs time, and nobody else is served meanwhile."""
    with pytest.raises(ValidationError) as raised:
        kind.model_validate(KINDS[kind] | fields)
    assert raised.value.error_count() <= 40


def test_first_unknown_field_is_named():
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate({"model": "m", "b": None, "k": 1, "a": 2, "messages": [USER]})
    [error] = raised.value.errors()
    assert (error["type"], error["loc"]) == ("extra_forbidden", ("k",))


@pytest.mark.parametrize("n", [300, 301])
def test_logit_bias_has_a_bound(n):
    fields = {"model": "m", "prompt": "a", "logit_bias": {str(i): 1.0 for i in range(n)}}
    if n == 300:
        assert len(CompletionRequest.model_validate(fields).logit_bias) == n
    else:
        with pytest.raises(ValidationError, match="it has 301 tokens; write at most 300"):
            CompletionRequest.model_validate(fields)
