"""Answers follow their JSON schema, and impossible schemas are refused."""

import json

import pytest
from serving.api_client import ASK, chat, events

SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["lion", "owl"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


def test_answers_follow_their_schema(client):
    """For any weights."""
    body = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
    result = chat(
        client,
        response_format=body,
        n=3,
        seed=1,
        temperature=1.5,
        return_token_ids=True,
        max_tokens=60,
    )
    for choice in result["choices"]:
        pet = json.loads(choice["message"]["content"])
        assert (
            choice["finish_reason"] == "stop"
            and pet["animal"] in ("lion", "owl")
            and 0 <= pet["legs"] <= 99
        )
    prefix = result["choices"][0]["token_ids"][:3]
    rest = chat(client, response_format=body, prefix_token_ids=prefix, seed=1, max_tokens=60)[
        "choices"
    ][0]
    start = client.post("/detokenize", json={"model": "chats", "tokens": prefix}).json()["prompt"]
    assert json.loads(start + rest["message"]["content"]).keys() == {"animal", "legs"}
    some = chat(client, response_format={"type": "json_object"}, seed=1, max_tokens=60)["choices"][
        0
    ]
    assert some["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "body",
    [
        {"type": "json_schema"},
        {"type": "text", "json_schema": {"name": "pet", "schema": SCHEMA}},
        {"type": "json_object", "json_schema": {"name": "pet", "schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "odd", "schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"name": "a name", "schema": SCHEMA}},
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(client, body):
    assert chat(client, status=400, response_format=body)["error"]["param"].startswith(
        "response_format"
    )


def nested(depth):
    schema = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


ITSELF = {"$ref": "#"}


@pytest.mark.parametrize(
    "schema",
    [nested(100), nested(400), {"enum": ["\ud800"]}, ITSELF, {"anyOf": [ITSELF]}],
    ids=["100", "400", "surrogate", "itself", "any of itself"],
)
def test_a_schema_that_cannot_be_read_is_refused(client, schema):
    fields = {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema}}
    # Httpx cannot write half of a surrogate pair.
    body = json.dumps(ASK | {"response_format": fields})
    response = client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith("The schema odd cannot be followed: ")


def test_impossible_schema_ends_with_an_error(client):
    endless = {"$ref": "#/$defs/endless"}
    schema = {
        "type": "object",
        "properties": {"a": endless},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"endless": endless},
    }
    body = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema}}
    }
    error = chat(client, status=400, **body)["error"]
    assert error["param"] == "response_format" and "any further" in error["message"]
    *_, last = events(client, "/v1/chat/completions", **ASK, **body)
    assert last["error"]["message"] == error["message"]
    assert client.get("/health").status_code == 200
