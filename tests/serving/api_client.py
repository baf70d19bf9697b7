"""Requests to a running server, as functions."""

import json

ASK = {
    "model": "chats",
    "messages": [{"role": "user", "content": "Hello there."}],
    "max_tokens": 12,
}


GREEDY = {"temperature": 0.0}


def chat(client, status=200, **fields):
    response = client.post("/v1/chat/completions", json=ASK | fields)
    assert response.status_code == status, response.text
    return response.json()


def complete(client, status=200, **fields):
    response = client.post("/v1/completions", json={"model": "base", "prompt": "Hello"} | fields)
    assert response.status_code == status, response.text
    return response.json()


def events(client, path, **fields):
    with client.stream("POST", path, json=fields | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def metric(client, name, model):
    start = f'{name}{{model_name="{model}"}} '
    return next(
        float(line.removeprefix(start))
        for line in client.get("/metrics").text.splitlines()
        if line.startswith(start)
    )
