"""Neutral fields are accepted. Their list is taken from the installed SDK."""

import typing

import httpx
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionMessage,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_content_part_text_param import (
    ChatCompletionContentPartTextParam,
)
from openai.types.responses import ResponseOutputMessage, ResponseOutputText, response_create_params
from openai.types.shared_params import Reasoning

from seq2chat.serving import protocol, responses_protocol

BODIES = {
    "/v1/chat/completions": {
        "model": "chats",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
    },
    "/v1/completions": {"model": "base", "prompt": "Hi", "max_tokens": 2},
    "/v1/embeddings": {"model": "base", "input": "Hi"},
    "/v1/responses": {"model": "chats", "input": "Hi", "max_output_tokens": 2},
}
TYPES = {
    "/v1/chat/completions": chat_params.CompletionCreateParamsNonStreaming,
    "/v1/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
    "/v1/responses": response_create_params.ResponseCreateParamsNonStreaming,
}
SHARED = {
    "temperature": 1,
    "top_p": 1,
    "top_k": -1,
    "stop": "",
    "n": 1,
    "seed": 1.0,
    "stream": False,
    "user": "me",
    "stream_options": {"include_usage": False, "include_obfuscation": False},
    "presence_penalty": 0,
    "max_tokens": -1,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
}
CALLER = {
    "metadata": {"a": "b"},
    "store": True,
    "safety_identifier": "me",
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "parallel_tool_calls": True,
    "service_tier": "auto",
}
NEUTRAL = {
    "/v1/chat/completions": (
        SHARED
        | CALLER
        | {
            "tools": [],
            "tool_choice": "auto",
            "functions": [],
            "function_call": "none",
            "top_logprobs": 0,
            "reasoning_effort": "low",
            "best_of": 1,
            "verbosity": "medium",
            "modalities": ["text"],
            "max_completion_tokens": 4.0,
            "response_format": {"type": "text"},
            "prefix_token_ids": [],
            "web_search_options": {},
            "prediction": {},
        }
    ),
    "/v1/completions": SHARED | {"best_of": 1, "suffix": "", "echo": False},
    "/v1/embeddings": {"user": "me", "encoding_format": "float"},
    "/v1/responses": (
        CALLER
        | {
            "tools": [],
            "tool_choice": "none",
            "truncation": "disabled",
            "background": False,
            "include": [],
            "reasoning": {"effort": "medium"},
            "top_logprobs": 0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "stream_options": {"include_obfuscation": True},
        }
    ),
}
REFUSED = {
    "/v1/chat/completions": {
        "audio": {"voice": "a"},
        "service_tier": "priority",
        "modalities": ["audio"],
        "reasoning_effort": "high",
        "verbosity": "low",
        "best_of": 3,
        "functions": [{"name": "f"}],
        "web_search_options": {"a": 1},
        "prediction": {"a": 1},
        "moderation": {"model": "a"},
    },
    "/v1/completions": {"best_of": 2, "suffix": "end"},
    "/v1/embeddings": {"dimensions": 3},
    "/v1/responses": {
        "conversation": "a",
        "prompt": {"id": "a"},
        "background": True,
        "tools": [{"type": "web_search"}],
        "truncation": "auto",
        "include": ["a"],
        "top_logprobs": 1,
    },
}
OPTIONS_THAT_ASK_FOR_NOTHING = [
    {"reasoning": {"effort": None}},
    {"reasoning": {"summary": None}},
    {"reasoning": {"generate_summary": None}},
    {"reasoning": {"effort": "low", "summary": None}},
    {"reasoning": {}},
    {"reasoning": {"effort": "none", "context": "auto", "mode": "standard"}},
    {"background_options": {"completion_window": "soonest", "continuation_id": None}},
    {"image": {"context_compression": None}},
    {"image": {"context_compression": "disabled"}},
    {"access_programs": {"cyber": "standard"}},
    {"access_programs": {"cyber": None}},
    {"moderation": {"model": None, "policy": None}},
    {"prompt": {"id": None}},
    {"conversation": {}},
]
OPTIONS_THAT_ARE_REFUSED = [
    ("reasoning.effort", {"reasoning": {"effort": "high"}}),
    ("reasoning.summary", {"reasoning": {"effort": "low", "summary": "auto"}}),
    ("reasoning.generate_summary", {"reasoning": {"generate_summary": "concise"}}),
    ("reasoning.mode", {"reasoning": {"mode": "pro"}}),
    ("reasoning.unknown", {"reasoning": {"unknown": 1}}),
    ("background_options.completion_window", {"background_options": {"completion_window": "2h"}}),
    ("image.context_compression", {"image": {"context_compression": "enabled"}}),
    ("access_programs.cyber", {"access_programs": {"cyber": "daybreak_red"}}),
    ("moderation", {"moderation": {"model": "a", "policy": None}}),
]


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("path", BODIES)
def test_neutral_sdk_fields_are_accepted(client, path):
    """A new version of the SDK shows its new fields here."""
    for name in typing.get_type_hints(TYPES[path]).keys() - BODIES[path].keys():
        response = client.post(path, json=BODIES[path] | {name: None})
        assert response.status_code == 200, (name, response.text)
    plain = client.post(path, json=BODIES[path]).json()
    for name, value in NEUTRAL[path].items():
        response = client.post(path, json=BODIES[path] | {name: value})
        assert response.status_code == 200, (name, response.text)
    assert "usage" in plain


def test_every_field_of_the_sdk_has_a_decision():
    models = {
        protocol.ChatRequest: TYPES["/v1/chat/completions"],
        protocol.CompletionRequest: TYPES["/v1/completions"],
        protocol.EmbeddingRequest: TYPES["/v1/embeddings"],
        responses_protocol.ResponsesRequest: TYPES["/v1/responses"],
        protocol.ChatMessage: ChatCompletionUserMessageParam,
        protocol.TextPart: ChatCompletionContentPartTextParam,
    }
    for ours, theirs in models.items():
        assert set(typing.get_type_hints(theirs)) <= set(ours.model_fields), theirs
    assert set(typing.get_type_hints(ChatCompletionAssistantMessageParam)) <= set(
        protocol.ChatMessage.model_fields
    )
    options = {
        responses_protocol.ReasoningOptions: Reasoning,
        responses_protocol.BackgroundOptions: response_create_params.BackgroundOptions,
        responses_protocol.ImageOptions: response_create_params.Image,
        responses_protocol.AccessPrograms: response_create_params.AccessPrograms,
    }
    for ours, theirs in options.items():
        assert set(typing.get_type_hints(theirs)) == set(ours.model_fields), theirs
    assert set(ChatCompletionMessage.model_fields) <= set(protocol.ChatMessage.model_fields)
    assert set(ResponseOutputMessage.model_fields) <= set(
        responses_protocol.ResponseMessage.model_fields
    )
    assert set(ResponseOutputText.model_fields) <= set(responses_protocol.ResponsePart.model_fields)


@pytest.mark.parametrize("path", BODIES)
def test_unsupported_values_are_refused_by_name(client, path):
    for name, value in REFUSED[path].items():
        error = client.post(path, json=BODIES[path] | {name: value}).json()["error"]
        assert error["param"] == name and error["message"].startswith(name), error


@pytest.mark.parametrize("fields", OPTIONS_THAT_ASK_FOR_NOTHING, ids=str)
def test_neutral_options_are_accepted(fields):
    responses_protocol.ResponsesRequest.model_validate(BODIES["/v1/responses"] | fields)


@pytest.mark.parametrize(("place", "fields"), OPTIONS_THAT_ARE_REFUSED)
def test_unsupported_options_are_refused_by_place(client, place, fields):
    response = client.post("/v1/responses", json=BODIES["/v1/responses"] | fields)
    error = response.json()["error"]
    assert (
        response.status_code == 400
        and error["param"] == place
        and error["message"].startswith(place)
    ), error


@pytest.mark.parametrize(
    "roles",
    [
        "user user",
        "assistant user",
        "system system user",
        "user system user",
        "system",
        "user assistant assistant",
    ],
)
def test_turns_in_any_order_are_answered(client, roles):
    messages = [{"role": role, "content": f"Hello {i}"} for i, role in enumerate(roles.split())]
    body = BODIES["/v1/chat/completions"] | {"messages": messages, "return_token_ids": True}
    answer = client.post("/v1/chat/completions", json=body).json()
    tokens = client.post("/tokenize", json={"model": "chats", "messages": messages}).json()
    assert answer["prompt_token_ids"] == tokens["tokens"] and answer["choices"][0]["finish_reason"]


def test_begun_answer_is_continued(client):
    """Empty instructions count as none."""
    path, body = (
        "/v1/chat/completions",
        BODIES["/v1/chat/completions"] | {"temperature": 0, "return_token_ids": True},
    )
    user, empty = {"role": "user", "content": "Hi"}, {"role": "system", "content": ""}
    plain = client.post(path, json=body).json()
    same = client.post(
        path, json=body | {"messages": [empty, user, {"role": "assistant", "content": ""}]}
    ).json()
    assert same["prompt_token_ids"] == plain["prompt_token_ids"]
    prefix = client.post(
        path, json=body | {"messages": [user, {"role": "assistant", "content": "Hello"}]}
    ).json()
    hello = client.post("/tokenize", json={"model": "chats", "prompt": "Hello"}).json()["tokens"]
    assert prefix["prompt_token_ids"] == [*plain["prompt_token_ids"], *hello]
    prefixed = client.post(path, json=body | {"prefix_token_ids": hello}).json()
    assert prefixed["choices"][0]["token_ids"] == prefix["choices"][0]["token_ids"]


def test_the_smaller_of_two_limits_holds(client):
    body = BODIES["/v1/chat/completions"] | {"max_tokens": 5, "max_completion_tokens": 3}
    for fields in ({}, {"max_tokens": 3, "max_completion_tokens": 5}, {"max_tokens": -1}):
        result = client.post("/v1/chat/completions", json=body | {"seed": 1} | fields).json()
        assert result["usage"]["completion_tokens"] <= 3
