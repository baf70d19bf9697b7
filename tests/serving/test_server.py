"""Load, disconnects, failures and shutdown of a running server."""

import gc
import json
import socket
import threading
import time

import httpx
import pytest

from seq2chat.config import UserError
from seq2chat.serving.logprobs import TokenNames
from seq2chat.serving.served_model import open_model
from seq2chat.serving.server import Server, run_server

ASK = {
    "model": "chats",
    "messages": [{"role": "user", "content": "Hello there."}],
    "temperature": 2.0,
    "seed": 1,
}


HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
    "application/json\r\nContent-Length: "
)


LONG = ASK | {"max_tokens": 80, "logit_bias": {}}


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_slot_within_two_steps(start, slow, stream):
    server = start(names=("chats",))
    engine = server.engine("chats")
    body = json.dumps(LONG | {"stream": stream}).encode()
    head = f"{HEAD}{len(body)}"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        assert server.until(lambda: engine.statistics.generated_tokens > 3)
    aborted = []
    assert server.until(lambda: aborted.append(engine.statistics.steps) or not engine.has_work, 5)
    assert engine.statistics.aborted == 1 and engine.statistics.generated_tokens < 40
    # The way of the news through sockets and loop takes a step or two.
    assert aborted[-1] - aborted[0] <= 2 + 2


def test_full_queue_is_429(start, slow):
    server = start(names=("chats",), n_slot=1)
    server.engine("chats").queue.max_waiting = 1
    answers, done = [], []

    def ask():
        answers.append(
            httpx.post(
                f"{server.url}/v1/chat/completions", json=LONG | {"max_tokens": 30}, timeout=60
            )
        )
        done.append(1)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(200) == 2 and codes.count(429) == 4
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (
        refused.headers["retry-after"] == "1"
        and refused.json()["error"]["type"] == "rate_limit_error"
    )


def test_broken_step_fails_running_requests(start, slow, monkeypatch):
    server = start(names=("chats", "base"))
    engine, answers = server.engine("chats"), []
    url = f"{server.url}/v1/chat/completions"

    def ask(stream):
        answers.append(httpx.post(url, json=LONG | {"stream": stream}, timeout=60))

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
    for thread in threads:
        thread.start()
    assert server.until(lambda: engine.n_running == 2)

    step = engine.step

    def broken():
        monkeypatch.setattr(engine, "step", step)
        raise MemoryError("no more of it")

    monkeypatch.setattr(engine, "step", broken)
    for thread in threads:
        thread.join(20)
    assert sorted(answer.status_code for answer in answers) == [200, 503]
    streamed = next(answer.text for answer in answers if answer.status_code == 200)
    assert '"error"' in streamed and streamed.endswith("data: [DONE]\n\n")
    for model in ("chats", "base"):
        assert (
            httpx.post(
                f"{server.url}/v1/completions", json={"model": model, "prompt": "a"}
            ).status_code
            == 200
        )
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.fixture
def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_requests_are_refused_while_models_load(folders, free_port, monkeypatch):
    loaded, addresses, servers = threading.Event(), [], []

    class Kept(Server):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            servers.append(self)

    def load():
        loaded.wait(30)
        return [open_model(folders["base"], "base", 2)]

    def get(path):
        try:
            return httpx.get(f"http://127.0.0.1:{free_port}{path}")
        except httpx.ConnectError:
            return None

    def until(condition):
        end = time.monotonic() + 20
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        assert condition()

    monkeypatch.setattr("seq2chat.serving.server.Server", Kept)
    thread = threading.Thread(
        target=lambda: run_server(load, "127.0.0.1", free_port, "", addresses.append)
    )
    thread.start()
    until(lambda: get("/health") is not None)
    for path in ("/health", "/", "/v1/models"):
        refused = get(path)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["error"]["message"] == "The server is loading its models."
    assert not addresses
    gc.unfreeze()
    loaded.set()
    until(lambda: addresses)
    assert get("/health").status_code == 200
    # The libraries and models, which garbage collections leave out from now on.
    assert gc.get_freeze_count() > 100_000
    gc.unfreeze()
    servers[0].should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_server_exits_if_its_engine_breaks_for_good(folders, free_port, monkeypatch, caplog):
    def load():
        served = open_model(folders["base"], "base", 2)

        def broken():
            raise MemoryError("no more of it")

        monkeypatch.setattr(served.engine, "step", broken)
        return [served]

    def ask(address):
        body = {"model": "base", "prompt": ["a"] * 16, "max_tokens": 1}
        threading.Thread(
            target=lambda: httpx.post(f"{address}/v1/completions", json=body), daemon=True
        ).start()

    with pytest.raises(SystemExit) as end:
        run_server(load, "127.0.0.1", free_port, "", ask)
    assert end.value.code != 0 and "broke for good" in caplog.text


def test_loading_errors_are_raised(free_port):
    def load():
        raise UserError("There is no such run.")

    with pytest.raises(UserError, match="no such run"):
        run_server(load, "127.0.0.1", free_port, "", print)


def test_draining_finishes_running_answers_only(start, slow):
    server, answers = start(names=("chats",)), []
    url = f"{server.url}/v1/chat/completions"
    thread = threading.Thread(target=lambda: answers.append(httpx.post(url, json=LONG, timeout=60)))
    with httpx.Client() as client:
        assert client.get(f"{server.url}/health").status_code == 200
        thread.start()
        assert server.until(lambda: server.engine("chats").n_running == 1)
        server.state.draining = True
        assert client.get(f"{server.url}/health").status_code == 503
        refused = client.post(url, json=ASK)
        assert refused.status_code == 503 and refused.headers["retry-after"]
    server.server.should_exit = True
    thread.join(30)
    server.thread.join(20)
    assert answers[0].status_code == 200 and answers[0].json()["choices"][0]["finish_reason"] in (
        "stop",
        "length",
    )
    assert not server.thread.is_alive()


def test_slow_readers_delay_no_one(start):
    server = start(names=("chats",))
    body = json.dumps(
        LONG | {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 4}
    ).encode()
    head = f"{HEAD}{len(body)}"
    connections = []
    for _ in range(3):  # readers that never read
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        connections.append(connection)
    assert httpx.post(f"{server.url}/v1/chat/completions", json=ASK, timeout=60).status_code == 200
    assert server.until(lambda: not server.engine("chats").has_work)
    for connection in connections:
        connection.close()


def test_stalled_readers_are_dropped(monkeypatch):
    import asyncio

    from seq2chat.serving import sse as stream

    monkeypatch.setattr(stream, "SEND_SECONDS", 0.05)
    closed = []

    async def chunks():
        while True:
            yield {"text": "x"}

    async def never(message):
        await asyncio.sleep(60)

    async def receive():
        await asyncio.sleep(60)

    response = stream.EventStream(chunks(), lambda: closed.append(1), str)
    asyncio.run(asyncio.wait_for(response({"type": "http"}, receive, never), 5))
    assert closed == [1]


CALLS = {
    "/v1/embeddings": {"model": "base", "input": ["Hello"] * 100},
    "/v1/completions": {"model": "translates", "prompt": ["Hello"] * 100, "max_tokens": 8},
}


@pytest.fixture
def slow_calls(monkeypatch):
    """Count the calls of the engine thread, and slow each down."""
    from seq2chat.serving.engine_thread import EngineThread

    call, counted = EngineThread.call, []

    def slower(self, work):
        return call(self, lambda: counted.append(time.sleep(0.05)) or work())

    monkeypatch.setattr(EngineThread, "call", slower)
    return counted


@pytest.mark.parametrize("path", CALLS)
def test_calls_end_when_the_client_disconnects(start, slow_calls, path):
    server = start(names=("base", "translates"))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + path, json=CALLS[path], timeout=0.2)
    time.sleep(0.8)
    assert 0 < len(slow_calls) < 10


@pytest.mark.parametrize("path", CALLS)
def test_calls_have_a_deadline(start, slow_calls, path, monkeypatch):
    monkeypatch.setattr("seq2chat.serving.answer.SECONDS", 0.2)
    server = start(names=("base", "translates"))
    response = httpx.post(server.url + path, json=CALLS[path], timeout=60)
    assert response.status_code == 504 and "within its time" in response.json()["error"]["message"]
    assert len(slow_calls) < 10


def test_internal_errors_are_logged_and_not_sent(start, monkeypatch, caplog):
    def broken(*arguments):
        raise KeyError("a secret of the server")

    server = start(names=("chats",))
    monkeypatch.setattr(TokenNames, "entry", broken)
    body = ASK | {"stream": True, "logprobs": True, "max_tokens": 3}
    output = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).text
    assert "The server made a mistake." in output and "secret" not in output
    assert "a secret of the server" in caplog.text


@pytest.mark.parametrize("api_key", ["", "key-1"])
def test_connections_that_say_nothing_are_closed(start, monkeypatch, api_key):
    monkeypatch.setattr("seq2chat.serving.timeouts.REQUEST_SECONDS", 0.3)
    server = start(names=("chats",), api_key=api_key)
    partial_requests = [
        b"",
        b"POST /v1/chat",
        f"{HEAD}90\r\n\r\n{{".encode(),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h",
    ]
    connections = []
    for data in partial_requests:
        connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        connection.sendall(data)
        connection.settimeout(5)
        connections.append(connection)
    for connection in connections:
        while connection.recv(4096):  # until the server closes it
            pass
        connection.close()
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_an_answer_may_take_longer_than_its_request(start, slow, monkeypatch):
    monkeypatch.setattr("seq2chat.serving.timeouts.REQUEST_SECONDS", 0.2)
    server = start(names=("chats",))
    result = httpx.post(
        f"{server.url}/v1/chat/completions", json=LONG | {"max_tokens": 40}, timeout=60
    )
    assert (
        result.status_code == 200
        and slow.seconds * result.json()["usage"]["completion_tokens"] > 0.2
    )


def test_connections_are_bounded(start, monkeypatch):
    monkeypatch.setattr("seq2chat.serving.timeouts.MAX_CONNECTIONS", 3)
    server = start(names=("chats",))
    address = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    silent = [socket.create_connection(address) for _ in range(3)]
    refused = socket.create_connection(address)
    refused.settimeout(5)
    assert b"503" in refused.recv(4096)
    for connection in [*silent, refused]:
        connection.close()
    assert server.until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
