"""A body that is no JSON is refused on every route, with the reason in one sentence."""

import gzip
import json

import httpx
import pytest
from starlette.exceptions import HTTPException

from seq2chat.serving.body import parse

BODIES = {
    "/v1/chat/completions": {"model": "chats", "messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"model": "chats", "input": "a", "max_output_tokens": 1},
    "/v1/completions": {"model": "base", "prompt": "a"},
    "/v1/embeddings": {"model": "base", "input": "a"},
    "/tokenize": {"model": "base", "prompt": "a"},
    "/detokenize": {"model": "base", "tokens": [1]},
}
JSON = {"content-type": "application/json"}
UNREADABLE = {
    b'{"a": NaN}': "The body has the number NaN; write finite numbers only.",
    b"[-Infinity]": "The body has the number -Infinity; write finite numbers only.",
    b"[1e999]": "The body has the number 1e999; write finite numbers only.",
    b'{"a": 1,}': "expecting property name enclosed in double quotes at line 1, column 9.",
    b'{"a": "\xff"}': "The body cannot be read as JSON: it is not UTF-8.",
    b"[" * 100_000: "The body cannot be read as JSON: its lists and objects are nested too deeply.",
    b"9" * 5000: "The body cannot be read as JSON: an integer has more than 4,300 digits.",
}


@pytest.mark.parametrize("value", [{"a": [1, -2.5, 1e30, True, None, "é"]}, [], "a", 9**99])
def test_json_is_parsed(value):
    assert parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize("body", UNREADABLE, ids=lambda body: body[:12].decode("latin-1"))
def test_unreadable_body_is_explained_in_one_sentence(body):
    with pytest.raises(HTTPException) as caught:
        parse(body)
    assert caught.value.status_code == 400
    assert caught.value.detail.endswith(UNREADABLE[body]) and caught.value.detail.startswith(
        "The body "
    )


@pytest.mark.parametrize("path", BODIES)
def test_every_route_reads_its_body_so(server, path):
    body = json.dumps(BODIES[path])
    with_nan = f'{body[:-1]}, "metadata": {{"a": NaN}}}}'.encode()
    for content, headers, message in [
        (with_nan, {}, "The body has the number NaN; write finite numbers only."),
        (b'{"model": "\xff"}', {}, "The body cannot be read as JSON: it is not UTF-8."),
        (
            gzip.compress(body.encode()),
            {"content-encoding": "gzip"},
            "The body is compressed by gzip; send it without Content-Encoding.",
        ),
    ]:
        response = httpx.post(server.url + path, content=content, headers=JSON | headers)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"] == message
    plain = httpx.post(
        server.url + path, content=body, headers=JSON | {"content-encoding": "identity"}
    )
    assert plain.status_code == 200, plain.text
