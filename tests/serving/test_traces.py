"""Traces of served models: replies, tensors, interventions, bounds and errors."""

import json
import struct

import httpx
import numpy as np
import pytest
import torch
from serving.api_client import chat

from seq2chat.interpret import reading
from seq2chat.interpret.attribution import attribution, head_outputs
from seq2chat.interpret.effects import effect_map
from seq2chat.interpret.encoding import encoded
from seq2chat.interpret.lens import lens
from seq2chat.interpret.patch import ablate, patch, scale
from seq2chat.interpret.reading import input_ids, input_texts
from seq2chat.interpret.trace import trace
from seq2chat.serving.trace_store import ByteLRU
from seq2chat.serving.tracing import MAX_REPLY_BYTES
from seq2chat.text.chat import Message, prompt_ids
from seq2chat.training.checkpoint import load_checkpoint

TEXT = "Hello there"
DTYPES = {"u8sqrt": np.uint8, "f16": "<f2", "f32": "<f4", "i32": "<i4"}


def create(client, status=200, **fields):
    response = client.post("/api/traces", json={"model": "base", "text": TEXT} | fields)
    assert response.status_code == status, response.text
    assert len(response.content) <= MAX_REPLY_BYTES
    return response.json()


def decoded(content):
    """The documented bytes: length, header, numbers."""
    (length,) = struct.unpack("<I", content[:4])
    assert length % 4 == 0
    header = json.loads(content[4 : 4 + length])
    numbers = np.frombuffer(content[4 + length :], DTYPES[header["format"]])
    return header, numbers.reshape(header["shape"])


def tensor(client, trace_id, status=200, **query):
    response = client.get(f"/api/traces/{trace_id}/tensor", params=query)
    assert response.status_code == status, response.text
    return decoded(response.content) if status == 200 else response.json()["error"]


def python_trace(folders, name, text=TEXT, translation=None):
    model, tokenizer = load_checkpoint(folders[name])
    return model, tokenizer, trace(model, *input_texts(model, tokenizer, text, translation))


def test_a_reply_is_the_trace_of_python(client, folders):
    _model, _, one = python_trace(folders, "base")
    reply = create(client, position=2, target=7)
    logprobs = one.logprobs(2)
    assert [token["id"] for token in reply["tokens"]] == one.tokens
    best = logprobs.topk(10)
    assert [token["id"] for token in reply["top"]] == best.indices.tolist()
    assert reply["target"]["logprob"] == pytest.approx(float(logprobs[7]), abs=1e-4)
    rows = lens(one, [2], 5, 7)
    assert [row["site"] for row in reply["lens"]] == rows.sites
    assert [row["target"] for row in reply["lens"]] == pytest.approx(
        rows.target[:, 0].tolist(), 1e-3
    )
    parts = {(p.site, p.head): p.logit for p in attribution(one, 7, 2)}
    for part in reply["attribution"]:
        assert part["logit"] == pytest.approx(parts[part["site"], part["head"]], abs=1e-3)
    shapes = {site["name"]: site["shape"] for site in reply["sites"]}
    assert shapes["layers.*.self_attn.heads"] == [2, 2, len(one.tokens), len(one.tokens)]
    assert reply["window"] == {"start": 0, "total": len(one.tokens)} and reply["message"] is None
    assert create(client, position=-1)["id"] == reply["id"]
    assert create(client, text="Hello you")["id"] != reply["id"]


def test_tensors_are_those_of_python(client, folders):
    _, _, one = python_trace(folders, "base")
    reply = create(client)
    site = "layers.*.self_attn.heads"
    header, numbers = tensor(client, reply["id"], site=site, layer=1, head=0)
    assert header == {
        "site": site,
        "format": "f32",
        "axes": ["query", "key"],
        "shape": list(numbers.shape),
    }
    weights = one["layers.1.self_attn.heads"][0].numpy()
    np.testing.assert_allclose(numbers, weights, atol=1e-6)
    _, bytes_ = tensor(client, reply["id"], site=site, layer=1, head=0, format="u8sqrt")
    assert np.abs((bytes_ / 255.0) ** 2 - weights).max() <= 0.004
    _, halves = tensor(client, reply["id"], site=site, layer=1, format="f16")
    np.testing.assert_allclose(halves, one["layers.1.self_attn.heads"].numpy(), atol=1e-3)
    _, wall = tensor(client, reply["id"], site=site, pool=3)
    assert wall.shape == (2, 2, 3, 3) and wall[1, 0].max() == pytest.approx(weights.max(), 1e-5)
    header, logits = tensor(client, reply["id"], site="logits", position=1)
    assert header["axes"] == ["token"]
    np.testing.assert_allclose(logits, one.logits_at(1).numpy(), atol=1e-4)
    found = lens(one, range(len(one.tokens)), 4)
    header, ids = tensor(client, reply["id"], site="lens.tokens", layer=3, top=4, format="i32")
    assert header["axes"] == ["position", "rank"] and ids.tolist() == found.ids[3].tolist()
    _, logprobs = tensor(client, reply["id"], site="lens.logprobs", layer=-1, position=0, top=4)
    np.testing.assert_allclose(logprobs, found.logprobs[-1, 0].numpy(), atol=1e-4)
    _, norms = tensor(client, reply["id"], site="norms")
    np.testing.assert_allclose(norms[0], one["layers.input"].norm(dim=-1).numpy(), rtol=1e-5)
    output = "layers.*.self_attn.heads.output"
    _, outputs = tensor(client, reply["id"], site=output, layer=1, head=1)
    expected = head_outputs(one, "layers.1.self_attn")[:, 1].numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert output in [group["name"] for group in reply["computed"]]


def test_an_etag_saves_the_second_transfer(client):
    url = f"/api/traces/{create(client)['id']}/tensor"
    first = client.get(url, params={"site": "norms"})
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    again = client.get(url, params={"site": "norms"}, headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(
        url, params={"site": "norms", "position": 0}, headers={"if-none-match": etag}
    )
    assert other.status_code == 200
    assert other.headers["etag"] != etag


@pytest.mark.parametrize("name", ["bert", "translates"])
def test_other_families(client, folders, name):
    translation = "Fine" if name == "translates" else None
    _, _, one = python_trace(folders, name, translation=translation)
    reply = create(client, model=name, translation=translation)
    assert [token["id"] for token in reply["tokens"]] == one.tokens
    if translation:
        assert [token["id"] for token in reply["source"]] == one.source
        site = "decoder.*.cross_attn.heads"
    else:
        site = "layers.*.self_attn.heads"
    _, weights = tensor(client, reply["id"], site=site, layer=0)
    np.testing.assert_allclose(weights, one[site.replace("*", "0")].numpy(), atol=1e-6)
    if translation:  # without a target, the model translates
        assert create(client, model=name)["source"] == reply["source"]


def test_an_rnn(start, folders):
    server = start(names=("rnn",))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        reply = create(client, model="rnn", translation="Fine")
        assert reply["lens"] is reply["attribution"] is None
        _, _, one = python_trace(folders, "rnn", translation="Fine")
        for site in ("decoder.attention", "encoder.forward.*.gates", "decoder.cells.*.gates"):
            _, numbers = tensor(client, reply["id"], site=site)
            np.testing.assert_allclose(numbers, one.stack(site)[0].numpy(), atol=1e-6)
        off = [{"site": "decoder.attention.context", "at": [0]}]
        effect = create(client, model="rnn", translation="Fine", interventions=off, position=0)
        assert any(abs(token["delta"]) > 1e-4 for token in effect["effect"]["tokens"])


def test_messages_and_tokens(client, folders):
    _, tokenizer = load_checkpoint(folders["chats"])
    messages = [{"role": "user", "content": "Hello"}]
    reply = create(client, model="chats", text=None, messages=messages)
    ids = prompt_ids(tokenizer, [Message("user", "Hello")])
    assert [token["id"] for token in reply["tokens"]] == ids
    assert create(client, model="chats", text=None, tokens=ids)["id"] == reply["id"]


def test_interventions_are_those_of_python(client, folders):
    model, tokenizer, one = python_trace(folders, "base")
    changes = [
        {"site": "1.1"},
        {"site": "layers.0.mlp", "op": "scale", "factor": 0.5},
        {"site": "layers.0", "op": "patch", "from": {"text": "How are"}, "at": [-1]},
    ]
    reply = create(client, interventions=changes, target=7)
    source = trace(model, input_ids(model, tokenizer, "How are"))
    after = trace(
        model,
        one.tokens,
        interventions=[
            ablate("layers.1.self_attn.heads.context", 1),
            scale("layers.0.mlp", 0.5),
            patch("layers.0", source, at=[-1]),
        ],
    )
    first = reply["effect"]["tokens"][0]
    assert first["id"] == 7
    assert first["before"] == pytest.approx(float(one.logprobs(-1)[7]), abs=1e-4)
    assert first["after"] == pytest.approx(float(after.logprobs(-1)[7]), abs=1e-4)
    assert first["delta"] == pytest.approx(first["after"] - first["before"], abs=1e-4)
    assert reply["id"] != create(client)["id"]
    _, numbers = tensor(client, reply["id"], site="layers.*.mlp", layer=0)
    np.testing.assert_allclose(numbers, after["layers.0.mlp"].numpy(), atol=1e-5)


def test_the_effect_of_each_head(client, folders):
    model, _, one = python_trace(folders, "base")
    reply = create(client, effects={}, target=7)
    expected = effect_map(model, one.tokens, target=7)
    np.testing.assert_allclose(reply["effects"]["values"], expected.numpy(), atol=1e-4)
    ids = [one.tokens[0], *one.tokens[1:][::-1]]
    reply = create(client, effects={"from": {"tokens": ids}}, target=7)
    expected = effect_map(model, one.tokens, target=7, source=trace(model, ids))
    np.testing.assert_allclose(reply["effects"]["values"], expected.numpy(), atol=1e-4)


def test_a_long_text_is_windowed_and_the_reply_says_so(client):
    text = "Hello there. How are you? " * 40
    reply = create(client, text=text)
    total = reply["window"]["total"]
    assert (len(reply["tokens"]), reply["window"]["start"]) == (96, total - 96)
    assert reply["message"].startswith(f"The text has {total} tokens; the model read 96 of them")
    early = create(client, text=text, start=3, max_tokens=5)
    assert (len(early["tokens"]), early["window"]["start"]) == (5, 3)


def test_evicted_traces_are_computed_again(client, server, monkeypatch):
    store = server.state.traces
    first = create(client, text="one two three")
    header, numbers = tensor(client, first["id"], site="norms")
    monkeypatch.setattr(store.traces, "_limit", 1)
    create(client, text="four five")
    assert store.traces.get(first["id"]) is None and len(store.traces) == 1
    again = tensor(client, first["id"], site="norms")
    assert again[0] == header and np.array_equal(again[1], numbers)
    monkeypatch.setattr(store.specs, "_limit", 1)
    create(client, text="six seven")
    error = tensor(client, first["id"], status=404, site="norms")
    assert error["code"] == "trace_not_found" and "POST /api/traces" in error["message"]


def test_a_trace_that_outlives_its_spec_can_be_read_again(client, server, monkeypatch):
    store = server.state.traces
    first = create(client, text="seven eight")
    monkeypatch.setattr(store.specs, "_limit", 1)
    create(client, text="nine ten")
    assert store.traces.get(first["id"]) is not None and store.specs.get(first["id"]) is None
    assert create(client, text="seven eight")["id"] == first["id"]
    tensor(client, first["id"], site="norms")


def test_the_text_of_a_patch_is_not_translated(client, monkeypatch):
    searches = []
    search = reading.beam_search
    monkeypatch.setattr(
        reading, "beam_search", lambda *args, **kw: searches.append(1) or search(*args, **kw)
    )
    change = {"site": "0.cross_attn", "op": "patch", "from": {"text": TEXT}}
    reply = create(client, model="translates", translation="Fine", interventions=[change])
    assert max(abs(token["delta"]) for token in reply["effect"]["tokens"]) < 1e-5
    assert searches == []


def test_tokens_without_text_are_followed(client, folders):
    model, tokenizer, one = python_trace(folders, "base")
    last = model.config.vocab_size - 1
    assert last >= tokenizer.vocab_size
    reply = create(client, target=last)
    assert reply["target"]["logprob"] == pytest.approx(float(one.logprobs(-1)[last]), abs=1e-4)
    error = create(client, status=400, target=last + 1)["error"]
    assert error["message"] == f"There is no token {last + 1}; base has ids from 0 to {last}."


def test_numbers_that_overflow_are_the_clients_mistake(client):
    change = {"site": "layers.input", "op": "scale", "factor": 100}
    error = create(client, status=400, interventions=[change] * 32)["error"]
    assert "not finite; scale its tensors by smaller factors" in error["message"]


def test_memory_is_bounded_by_the_least_recently_used():
    lru = ByteLRU(100, len)
    for number in range(1000):
        lru.put(str(number), b"x" * 30)
        lru.get("997")
    assert len(lru) == 3 and lru.nbytes == 90 and lru.get("999") and lru.get("0") is None
    lru.put("999", b"x" * 500)  # the newest stays
    assert len(lru) == 1 and lru.nbytes == 500


def test_no_trace_crosses_api_keys(client):
    body = {"model": "base", "text": TEXT}
    ids = {}
    for key in ("a", "b"):
        headers = {"authorization": f"Bearer {key}"}
        ids[key] = client.post("/api/traces", json=body, headers=headers).json()["id"]
    assert ids["a"] != ids["b"]
    query = {"site": "norms"}
    for key, status in (("a", 200), ("b", 404)):
        response = client.get(
            f"/api/traces/{ids['a']}/tensor",
            params=query,
            headers={"authorization": f"Bearer {key}"},
        )
        assert response.status_code == status


def test_a_chat_goes_on_beside_traces(client, server, slow):
    alone = chat(client, temperature=0, max_tokens=24)["choices"][0]["message"]["content"]
    import threading

    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(chat(client, temperature=0, max_tokens=24))
    )
    thread.start()
    for number in range(5):
        create(client, model="chats", text=f"Hello {number}", effects={})
    thread.join()
    assert answers[0]["choices"][0]["message"]["content"] == alone
    module = next(one.module for one in server.served if one.id == "chats")
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"text": None}, "text", "Give one of text, messages and tokens."),
        ({"tokens": [1]}, "tokens", "Give one of text, messages and tokens."),
        ({"text": " "}, None, "The text is empty"),
        ({"text": None, "tokens": [99999]}, None, "write ids from 0 to"),
        ({"position": 50}, None, "The text has no position 50"),
        ({"target": "Hello there. How"}, "target", "tokens ("),
        ({"target": 99999}, None, "There is no token 99999"),
        ({"start": 500}, None, "The text has no token 500"),
        ({"max_tokens": 257}, "max_tokens", "less than or equal to 256"),
        ({"translation": "Fine"}, None, "A gpt does not translate"),
        ({"site": "norm"}, "site", "site is not supported"),
        ({"interventions": [{"site": "layers.0.mpl"}]}, None, "Did you mean layers.0.mlp?"),
        ({"interventions": [{"site": "0.9"}]}, None, "has no head 9"),
        (
            {"interventions": [{"site": "0.1", "head": 0}]},
            "interventions[0].head",
            "0.1 names a head already",
        ),
        (
            {"interventions": [{"site": "0.mlp", "op": "patch"}]},
            "interventions[0].from",
            "needs a text",
        ),
        (
            {"interventions": [{"site": "0.mlp", "op": "scale"}]},
            "interventions[0].factor",
            "needs a factor",
        ),
        (
            {"interventions": [{"site": "0.mlp", "op": "patch", "from": {"text": "a b c d e f"}}]},
            None,
            "equally many tokens",
        ),
        (
            {"effects": {"from": {"text": "a b c d e f g"}}},
            None,
            "differ in their number of tokens",
        ),
    ],
)
def test_bad_requests(client, fields, param, message):
    error = create(client, status=400, **fields)["error"]
    assert message in error["message"] and error["param"] == param, error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"site": "layers.*.mpl"}, "Did you mean layers.*.mlp?"),
        ({}, "site: field required."),
        ({"site": "norms", "format": "f64"}, "format: input should be"),
        ({"site": "norms", "layers": 1}, "layers is not supported; leave it out."),
        ({"site": "norms", "format": "u8sqrt"}, "u8sqrt is for weights from 0 to 1"),
        ({"site": "logits"}, "give the position"),
        ({"site": "lens.tokens"}, "give the layer"),
        ({"site": "lens.tokens", "layer": 0}, "holds ids of tokens; write format=i32"),
        ({"site": "norm", "pool": 4}, "Only attention maps are pooled"),
        ({"site": "layers.*.mlp", "layer": 2}, "has no layer 2; they are 0 to 1"),
    ],
)
def test_bad_tensors(client, query, message):
    error = tensor(client, create(client)["id"], status=400, **query)
    assert message in error["message"], error


def test_unknown_models_and_traces(client, monkeypatch):
    assert create(client, status=404, model="none")["error"]["code"] == "model_not_found"
    assert tensor(client, "0" * 32, status=404, site="norms")["code"] == "trace_not_found"
    monkeypatch.setattr("seq2chat.serving.tracing.MAX_TENSOR_BYTES", 10)
    error = tensor(client, create(client)["id"], status=400, site="norms")
    assert "give a layer, a head or a position" in error["message"]


def test_half_floats_overflow_to_infinity():
    content = encoded(torch.tensor([1e6, -2.5]), "x", ("dim",), "f16")
    assert decoded(content)[1].tolist() == [np.inf, -2.5]
