"""API keys, hosts and origins, and the privacy of prompts."""

import json
import logging

import httpx

from seq2chat.serving.middleware import PAGE_POLICY

ASK = {
    "model": "chats",
    "messages": [{"role": "user", "content": "Hello there."}],
    "temperature": 2.0,
    "seed": 1,
}


def test_every_route_but_health_and_page_wants_the_key(start):
    server = start(api_key="key-1", names=("chats",))
    paths = httpx.get(
        f"{server.url}/openapi.json", headers={"authorization": "Bearer key-1"}
    ).json()["paths"]
    paths = {path.replace("{name}", "chats"): methods for path, methods in paths.items()}
    paths |= {"/openapi.json": {"get": {}}, "/nothing": {"get": {}}}
    assert len(paths) > 8
    for path, methods in paths.items():
        for method in methods:
            for headers in (
                {},
                {"authorization": "Bearer key-2"},
                {"authorization": "key-1"},
                {"authorization": b"\xff"},
            ):
                response = httpx.request(method, server.url + path, headers=headers)
                assert response.status_code == (200 if path == "/health" else 401), (path, headers)
            allowed = httpx.request(
                method, server.url + path, headers={"authorization": "Bearer key-1"}
            )
            assert allowed.status_code != 401
    assert httpx.get(server.url + "/").status_code == 200
    assert b"'unsafe" not in PAGE_POLICY


def test_prompts_are_not_logged(start, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        server = start(names=("chats",))
        secret = "Zanzibar " * 3
        httpx.post(
            f"{server.url}/v1/chat/completions",
            json=ASK | {"messages": [{"role": "user", "content": secret}]},
        )
        httpx.post(f"{server.url}/v1/completions", json={"model": "chats", "prompt": secret * 99})
    ours = [
        record.getMessage()
        for record in caplog.records
        if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert not any("Zanzibar" in line for line in ours)
    out, err = capfd.readouterr()
    assert "Zanzibar" not in out + err


def test_keys_do_not_share_prompts(server):
    body = {
        "model": "base",
        "prompt": "Hello there. How are you? Fine, and you?" * 3,
        "max_tokens": 1,
    }

    def cached(key):
        result = httpx.post(
            f"{server.url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
        ).json()
        return result["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert [cached("a"), cached("b"), cached("a"), cached("b")] == [0, 0, 32, 32]


def test_without_a_key_only_local_hosts_are_answered(start):
    server = start(names=("chats",))
    for host, status in (
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 400),
    ):
        assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == status, (
            host
        )


def test_foreign_pages_are_refused_without_a_key(start):
    server = start(names=("chats",))
    own = server.url.removeprefix("http://")
    body = json.dumps(ASK | {"max_tokens": 1}).encode()
    foreign = [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
    ]
    for headers in foreign:
        for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/json"}):
            refused = httpx.post(
                f"{server.url}/v1/chat/completions", content=body, headers=headers | kind
            )
            assert refused.status_code == 403, headers
    assert (
        httpx.get(f"{server.url}/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    )  # a link to the page
    headers = {
        "origin": f"http://{own}",
        "sec-fetch-site": "same-origin",
        "content-type": "application/json",
    }
    assert (
        httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers).status_code
        == 200
    )
