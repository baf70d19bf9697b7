"""`POST /v1/chat/completions`: answers are the model's, and every field changes them."""

import pytest
import torch
from serving.api_client import ASK, GREEDY, chat, events

from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.text.chat import Message, prompt_ids
from seq2chat.training.checkpoint import load_checkpoint


def test_an_answer_is_what_the_model_says(client, folders):
    model, tokenizer = load_checkpoint(folders["chats"])
    ids = prompt_ids(tokenizer, [Message("user", "Hello there.")])
    [[twin]] = generate(
        model, [ids], SamplingConfig(12, 0.0), [tokenizer.control["<|im_end|>"], tokenizer.eos_id]
    )
    result = chat(client, **GREEDY, return_token_ids=True, logprobs=True, top_logprobs=3)
    [choice] = result["choices"]
    assert result["prompt_token_ids"] == ids and choice["token_ids"] == twin.tokens
    assert choice["finish_reason"] == twin.finish
    control = set(tokenizer.control.values())
    assert choice["message"]["content"] == tokenizer.decode(
        t for t in twin.tokens if t not in control
    )
    entries = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == pytest.approx(twin.logprobs, abs=1e-4)
    with torch.inference_mode():
        first = model(torch.tensor([ids]))[0, -1].log_softmax(-1).topk(3)
    assert [top["token_id"] for top in entries[0]["top_logprobs"]] == first.indices.tolist()
    assert [top["logprob"] for top in entries[0]["top_logprobs"]] == pytest.approx(
        first.values.tolist(), abs=1e-4
    )
    assert result["usage"]["prompt_tokens"] == len(ids) and result["usage"][
        "completion_tokens"
    ] == len(twin.tokens)


@pytest.mark.parametrize(
    "fields", [GREEDY, {"seed": 5, "temperature": 2.0}, {"seed": 6, "n": 3}, {"stop": ["e", " y"]}]
)
def test_a_stream_says_the_same_as_the_whole(client, fields):
    fields = (
        ASK | {"seed": 1, "return_token_ids": True, "logprobs": True, "max_tokens": 40} | fields
    )
    whole = client.post("/v1/chat/completions", json=fields).json()
    chunks = events(
        client, "/v1/chat/completions", **fields, stream_options={"include_usage": True}
    )
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert (
        chunks[-1]["choices"] == []
        and chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    )
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert mine[0]["delta"]["role"] == "assistant"
        assert (
            "".join(c["delta"].get("content") or "" for c in mine) == choice["message"]["content"]
        )
        assert [t for c in mine for t in c["token_ids"]] == choice["token_ids"]
        assert [e for c in mine if c["logprobs"] for e in c["logprobs"]["content"]] == choice[
            "logprobs"
        ]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]


def test_text_is_whole_characters(client):
    """Bytes of no character become U+FFFD in the whole and in the stream alike, never half a
    character."""
    for seed in range(8):
        fields = ASK | {"seed": seed, "temperature": 3.0, "max_tokens": 60}
        whole = client.post("/v1/chat/completions", json=fields).json()["choices"][0]["message"][
            "content"
        ]
        parts = [
            c["choices"][0]["delta"].get("content") or ""
            for c in events(client, "/v1/chat/completions", **fields)
        ]
        assert "".join(parts) == whole


def test_a_stop_string_across_tokens_is_never_shown(client):
    text = chat(client, **GREEDY, max_tokens=40)["choices"][0]["message"]["content"]
    stop = text[5:9]
    result = chat(client, **GREEDY, max_tokens=40, stop=stop)["choices"][0]
    assert (
        result["message"]["content"] == text[: text.index(stop)]
        and result["finish_reason"] == "stop"
    )
    parts = events(
        client, "/v1/chat/completions", **ASK | GREEDY | {"max_tokens": 40, "stop": stop}
    )
    assert (
        "".join(c["choices"][0]["delta"].get("content") or "" for c in parts)
        == text[: text.index(stop)]
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 3.0},
        {"top_p": 0.1},
        {"top_k": 1},
        {"min_p": 1.0},
        {"repetition_penalty": 50.0},
        {"presence_penalty": 2.0, "temperature": 0.0},
        {"frequency_penalty": 2.0, "temperature": 0.0},
        {"seed": 9},
        {"logit_bias": {"40": 100}},
        {"max_tokens": 3},
        {"stop": ["e"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_field_changes_the_answer(client, fields):
    plain = ASK | {"seed": 1, "temperature": fields.get("temperature", 1.5), "max_tokens": 40}
    if "temperature" in fields and len(fields) == 1:
        plain |= GREEDY
    responses = [
        client.post("/v1/chat/completions", json=body).json()
        for body in (plain, plain, plain | fields)
    ]
    texts = [one["choices"][0]["message"]["content"] for one in responses]
    assert texts[0] == texts[1] != texts[2]


def test_penalties_count_the_beginning_of_the_answer(client):
    fields = GREEDY | {"frequency_penalty": 2.0, "presence_penalty": 1.0, "return_token_ids": True}
    whole = chat(client, **fields, max_tokens=20)["choices"][0]["token_ids"]
    rest = chat(client, **fields, max_tokens=10, prefix_token_ids=whole[:10])["choices"][0]
    assert rest["token_ids"] == whole[10:]


def test_a_prefix_goes_on_as_if_it_had_been_said(client):
    whole = chat(client, **GREEDY, return_token_ids=True, max_tokens=20)["choices"][0]["token_ids"]
    result = chat(
        client, **GREEDY, return_token_ids=True, max_tokens=10, prefix_token_ids=whole[:10]
    )
    assert result["choices"][0]["token_ids"] == whole[10:]
    other = chat(
        client,
        **GREEDY,
        return_token_ids=True,
        max_tokens=10,
        prefix_token_ids=[*whole[:9], whole[9] ^ 1],
    )
    assert (
        other["prompt_token_ids"][-1] == whole[9] ^ 1
        and other["choices"][0]["token_ids"] != whole[10:]
    )
