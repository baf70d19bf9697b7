"""Work outside the event loop: bounded, in its order, and cancelled with its caller."""

import asyncio
import json
import threading
import time

import httpx
import pytest

from seq2chat.generation.request import QueueFull
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.tokens import Token
from seq2chat.serving import chat
from seq2chat.serving.answer import Answer
from seq2chat.serving.pool import Pool
from seq2chat.serving.protocol import ChatRequest
from seq2chat.serving.served_model import open_model
from seq2chat.serving.sse import to_json, to_long_json
from seq2chat.text.text_tokenizer import TextTokenizer


def test_pool_is_bounded_and_forgets_cancelled_work():
    pool, gate, done = Pool("counting", 1, max_waiting=2), threading.Event(), []

    async def main():
        started = asyncio.create_task(pool.run(lambda: gate.wait(10)))
        waiting = [asyncio.create_task(pool.run(lambda i=i: done.append(i))) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 requests are waiting for counting"):
            await pool.run(lambda: None)
        waiting[0].cancel()
        started.cancel()
        await asyncio.sleep(0.01)
        later = asyncio.create_task(pool.run(lambda: done.append("later")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(waiting[1], later)

    asyncio.run(main())
    assert done == [1, "later"]


def test_writing_answers_is_never_refused(server):
    """They were generated already."""
    gate = threading.Event()

    async def main():
        responses = [
            asyncio.create_task(server.state.json_response(lambda: gate.wait(10)))
            for _ in range(300)
        ]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*responses)

    assert {response.body for response in asyncio.run(main())} == {b"true"}


def test_counting_tokens_keeps_no_chat_waiting(start, monkeypatch):
    server, gate = start(names=("chats",)), threading.Event()
    encode = TextTokenizer.encode

    def slow(self, text, **options):
        if "count me" in text:
            gate.wait(10)
        return encode(self, text, **options)

    monkeypatch.setattr(TextTokenizer, "encode", slow)
    body = {"model": "chats", "prompt": "count me"}
    threads = [
        threading.Thread(target=lambda: httpx.post(f"{server.url}/tokenize", json=body, timeout=30))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    assert server.until(lambda: server.state.counting._n_busy == 12)
    body = {"model": "chats", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=5).status_code == 200
    gate.set()
    for thread in threads:
        thread.join()


def test_oversized_text_is_refused_before_counting(server):
    text = "q" * 900_000
    for fields in ({"prompt": text}, {"messages": [{"role": "user", "content": text[:9000]}] * 90}):
        error = httpx.post(f"{server.url}/tokenize", json={"model": "chats"} | fields).json()[
            "error"
        ]
        assert error["code"] == "context_length_exceeded"


def test_a_long_answer_is_written_in_small_steps(folders, monkeypatch):
    """Each entry of a token is made once, and no call of `json.dumps` writes more than an entry or
    two."""
    served = open_model(folders["chats"], "chats", 2)
    top = [(i, -1.0) for i in range(20)]
    samples = [
        [Token(i % 50, logprob=-1.0, top=top, text="a") for i in range(300)] for _ in range(4)
    ]
    body = ChatRequest(model="chats", messages=[{"role": "user", "content": "a"}], logprobs=True)
    answer = Answer(model=served, prompt=[1], sampling=SamplingConfig(1), n=4, logprobs=20)
    read = []
    real = TextTokenizer.token_bytes
    monkeypatch.setattr(
        TextTokenizer, "token_bytes", lambda self, i: read.append(i) or real(self, i)
    )
    served.token_names  # noqa: B018
    n_names = len(read)
    result = chat.response(body, answer, samples)
    assert len(read) == n_names + 50
    sizes = []
    monkeypatch.setattr(
        "seq2chat.serving.sse.to_json",
        lambda part: sizes.append(len(to_json(part))) or to_json(part),
    )
    assert json.loads(to_long_json(result)) == result
    assert max(sizes) < 3000


def test_long_json_is_json():
    for content in (
        {},
        [],
        {"a": []},
        {"a": [{"b": [1, {"c": [[1.5], [None]]}]}, {}], "é": "🙂"},
        [1, 2],
        "a",
        None,
    ):
        assert to_long_json(content) == to_json(content)


def test_writing_an_answer_does_not_block_the_loop(start, monkeypatch):
    server, gate = start(names=("chats",)), threading.Event()
    real = chat.response

    def slow(*arguments):
        gate.wait(10)
        return real(*arguments)

    monkeypatch.setattr(chat, "response", slow)
    body = {"model": "chats", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    answers = []
    url = f"{server.url}/v1/chat/completions"
    thread = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, timeout=30)))
    thread.start()
    time.sleep(0.2)
    assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
    gate.set()
    thread.join()
    assert answers[0].status_code == 200
