"""Invalid requests are refused with the place of the error."""

import json

import pytest
from serving.api_client import ASK, chat

from seq2chat.serving.answer import BadField
from seq2chat.serving.responses import as_chat
from seq2chat.serving.responses_protocol import ResponsesRequest


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role"),
        ({"seed": 1.5}, "seed"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "image_url"}],
                    }
                ]
            },
            "messages[0].content[1]",
        ),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "a", "nickname": "b"}]}, "messages[0].nickname"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"messages": [{"role": "user", "content": "Hello " * 500}]}, None),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prefix_token_ids": [10**6]}, None),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 16}, None),
        ({"seed": 2**70}, "seed"),
        ({"usr": "me"}, "usr"),
        ({"model": "base"}, None),
        ({"model": "bert"}, None),
    ],
)
def test_what_cannot_be_is_a_400(client, fields, param):
    error = chat(client, status=400, **fields)["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if param is not None:
        assert error["param"] == param and "constrained" not in error["message"]


def test_other_errors(client):
    assert chat(client, status=404, model="nobody")["error"]["code"] == "model_not_found"
    for method, path in (
        ("GET", "/v1/nothing"),
        ("POST", "/chat/completions"),
        ("POST", "/api/chat"),
    ):
        refused = client.request(method, path)
        assert (
            refused.status_code == 404
            and "POST /v1/chat/completions" in refused.json()["error"]["message"]
        )
    assert client.get("/v1/chat/completions").status_code == 405
    assert client.head("/").status_code == 200
    bare = client.post("/v1/chat/completions", content=json.dumps(ASK))
    assert (
        bare.status_code == 400
        and "Content-Type: application/json" in bare.json()["error"]["message"]
    )
    for fields in (
        {"messages": [{"role": "user", "content": "Hello " * 500}]},
        {"prefix_token_ids": [40] * 90},
    ):
        assert chat(client, status=400, **fields)["error"]["code"] == "context_length_exceeded"
    for body in (
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model": "chats", "messages": ' + b"[" * 5000,
        b"nul",
    ):
        response = client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400 and response.json()["error"]["message"]
    huge = client.post("/v1/completions", json={"model": "base", "prompt": "x" * 1_000_001})
    assert huge.status_code == 400 and "larger" in huge.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice.type",
        ),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"logit_bias": {"1": "a"}}, "logit_bias.1"),
    ],
)
def test_an_error_names_a_place_in_the_body(client, fields, place):
    error = chat(client, status=400, **fields)["error"]
    assert error["param"] == place and error["message"].startswith(f"{place}: ")


LONG_PARTS = [{"type": "input_text", "text": "q" * 600_000}] * 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"instructions": "Be brief.", "input": [{"role": "user", "content": "a"}] * 1000},
            "input",
        ),
        (
            {"instructions": "Be brief.", "input": [{"role": "user", "content": LONG_PARTS}]},
            "input[0].content",
        ),
    ],
    ids=["messages", "text"],
)
def test_bad_response_request_names_its_field(fields, param):
    with pytest.raises(BadField, match=r"^input") as caught:
        as_chat(ResponsesRequest.model_validate({"model": "chats"} | fields))
    assert caught.value.param == param


def test_too_many_response_messages_are_refused(client):
    fields = {
        "model": "chats",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": "a"}] * 1000,
    }
    response = client.post("/v1/responses", json=fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "input"
