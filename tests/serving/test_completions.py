"""`POST /v1/completions`: continued, scored and translated texts."""

import pytest
from serving.api_client import GREEDY, complete, events

from seq2chat.generation.beam import beam_search
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.score import score
from seq2chat.training.checkpoint import load_checkpoint


def test_completions_of_several_prompts(client, folders):
    model, tokenizer = load_checkpoint(folders["base"])
    prompts = ["Hello", "How are", "Fine"]
    result = complete(client, prompt=prompts, **GREEDY, max_tokens=6, n=2, return_token_ids=True)
    assert [c["index"] for c in result["choices"]] == list(range(6))
    for index, choice in enumerate(result["choices"]):
        ids = [tokenizer.eos_id, *tokenizer.encode(prompts[index // 2])]
        [[twin]] = generate(model, [ids], SamplingConfig(6, 0.0), [tokenizer.eos_id])
        assert choice["token_ids"] == twin.tokens and choice["prompt_token_ids"] == ids
    by_ids = complete(
        client, prompt=[tokenizer.eos_id, *tokenizer.encode("Hello")], **GREEDY, max_tokens=6
    )
    assert by_ids["choices"][0]["text"] == result["choices"][0]["text"]
    fields = {
        "model": "base",
        "prompt": prompts,
        "temperature": 0.0,
        "max_tokens": 6,
        "return_token_ids": True,
    }
    chunks = events(client, "/v1/completions", **fields)
    for index in range(3):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in mine) == result["choices"][2 * index]["text"]
        output = [c["prompt_token_ids"] for c in mine if "prompt_token_ids" in c]
        assert output == [result["choices"][2 * index]["prompt_token_ids"]]  # once, with the first


def test_scores_are_those_of_the_model(client, folders):
    """As in lm-eval's `local-completions`: token ids, echo, one log probability and one token."""
    model, tokenizer = load_checkpoint(folders["base"])
    context, target = tokenizer.encode("Hello there. How"), tokenizer.encode(" are you?")
    fields = {
        "prompt": [context + target],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
    }
    logprobs = complete(client, **fields)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    scored = logprobs["token_logprobs"][len(context) : -1]
    assert scored == pytest.approx(score(model, [context], [target])[0], abs=1e-4)
    only = complete(client, prompt="Hello there", echo=True, logprobs=0, max_tokens=0)
    assert only["choices"][0]["text"] == "Hello there" and only["usage"]["completion_tokens"] == 0
    assert complete(client, status=400, max_tokens=0)["error"]["param"] == "max_tokens"


def test_logprob_keys_are_unique_per_token(client):
    """Also parts of characters, and tokens of the model that its tokenizer does not have."""
    fields = {
        "prompt": "日本 🙂 Hello",
        "echo": True,
        "logprobs": 20,
        "max_tokens": 8,
        "temperature": 3.0,
        "seed": 2,
    }
    logprobs = complete(client, **fields)["choices"][0]["logprobs"]
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    assert any(token.startswith("bytes:\\x") for token in logprobs["tokens"])
    assert any(name.startswith("token:") for top in logprobs["top_logprobs"][1:] for name in top)
    for token, logprob, top in list(zip(*columns, strict=True))[1:]:
        assert top[token] == logprob and len(top) in (20, 21)


@pytest.mark.parametrize("prompt", ["Hello", "日本 🙂 Hello"])
def test_streamed_offsets_count_the_whole_text(client, prompt):
    fields = {
        "model": "base",
        "prompt": prompt,
        "echo": True,
        "logprobs": 0,
        "max_tokens": 8,
        "seed": 1,
        "n": 2,
    }
    whole = client.post("/v1/completions", json=fields).json()
    chunks = events(client, "/v1/completions", **fields)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert [o for c in mine for o in c["logprobs"]["text_offset"]] == choice["logprobs"][
            "text_offset"
        ]
        assert sorted(choice["logprobs"]["text_offset"]) == choice["logprobs"]["text_offset"]
        assert choice["logprobs"]["text_offset"][-1] <= len(choice["text"])
        output = zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True)
        token, offset = next(
            (token, offset) for token, offset in output if token.strip().startswith("H")
        )
        assert choice["text"].startswith(token, offset)


def test_an_encoder_decoder_translates(client, folders):
    model, tokenizer = load_checkpoint(folders["translates"])
    source = [*tokenizer.encode("How are you?"), tokenizer.eos_id]
    [hypotheses] = beam_search(
        model, [[tokenizer.eos_id]], tokenizer.eos_id, [source], n_best=2, max_length=8
    )
    result = complete(client, model="translates", prompt="How are you?", n=2, max_tokens=8)
    control = set(tokenizer.control.values())
    texts = [
        " ".join(tokenizer.decode(t for t in h.tokens if t not in control).split())
        for h in hypotheses
    ]
    assert [" ".join(c["text"].split()) for c in result["choices"]] == texts
    chunks = events(
        client, "/v1/completions", model="translates", prompt="How are you?", n=2, max_tokens=8
    )
    assert [c["choices"][0]["text"] for c in chunks] == [c["text"] for c in result["choices"]]
    for fields in (
        {"temperature": 0.5},
        {"logprobs": 1},
        {"prompt": [1, 2]},
        {"prompt": "a " * 60},
        {"top_k": 3},
        {"stream_options": {"include_usage": True}},
    ):
        complete(client, status=400, **{"model": "translates"} | fields)
    plain = {
        "temperature": 0,
        "top_p": 1.0,
        "top_k": -1,
        "seed": 4,
        "stop": [],
        "logprobs": False,
        "max_tokens": 8,
    }
    lines = complete(
        client, model="translates", prompt=["How are you?\n\n  \nHow are you?", ""], n=2, **plain
    )
    assert [choice["text"] for choice in lines["choices"]] == [
        f"{texts[0]}\n\n\n{texts[0]}",
        f"{texts[1]}\n\n\n{texts[1]}",
        "",
        "",
    ]


def test_translation_size_is_bounded(client, monkeypatch):
    monkeypatch.setattr("seq2chat.serving.translation.MAX_LINE_TOKENS", 8)
    complete(client, model="translates", prompt="Hello", max_tokens=8)
    assert (
        complete(client, status=400, model="translates", prompt="Hello", max_tokens=9)["error"][
            "param"
        ]
        == "max_tokens"
    )
    assert (
        complete(client, status=400, model="translates", prompt="q" * 9)["error"]["param"]
        == "prompt"
    )


def test_many_lines_are_translated_in_their_order(client):
    lines = [f"Hello {'there ' * i}you" for i in range(1, 20)]
    result = complete(client, model="translates", prompt=lines, max_tokens=8)
    alone = [
        complete(client, model="translates", prompt=line, max_tokens=8)["choices"][0]["text"]
        for line in lines
    ]
    assert [choice["text"] for choice in result["choices"]] == alone
    assert [choice["index"] for choice in result["choices"]] == list(range(len(lines)))
