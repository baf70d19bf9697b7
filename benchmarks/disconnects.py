"""Does the server outlive clients that hang up at random moments?

Clients send prompts of random length to `seq2chat serve` and close their sockets at a random
moment: before the answer, between its tokens, or at its end. Without a run folder, a tiny model
with random weights is served. Prints one line of JSON: how many requests were sent, hung up on and
answered, and the health of the server at the end.

    python benchmarks/disconnects.py --seconds 600
    python benchmarks/disconnects.py runs/demo/ppo --clients 16
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any


def tiny_model(folder: Path) -> Path:
    """Save a GPT with random weights in `folder` and return it."""
    import torch

    from seq2chat.config import GPTConfig
    from seq2chat.models.folder import make_model, save_model
    from seq2chat.text.byte_bpe import ByteBPE

    torch.manual_seed(0)
    tokenizer = ByteBPE.train(["Hello there. How are you? Fine, and you?"] * 3, 300)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context=192, n_layer=2, n_head=2, d_model=32
    )
    save_model(make_model(config), folder, eos_token_id=tokenizer.eos_id)
    tokenizer.save(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port: int, path: str) -> tuple[int, Any]:
    """Return status and body of a GET; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def send(port: int, model: str, context: int, rng: random.Random, counts: Counter[str]) -> None:
    """Send one request and hang up at a random moment, or read the answer to its end."""
    prompt = [rng.randrange(64) for _ in range(rng.randint(1, context - 1))]
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": rng.randint(1, 64),
        "stream": rng.random() < 0.5,
    }
    if rng.random() < 0.2:
        body |= {"echo": True, "logprobs": rng.randint(0, 5)}
    if rng.random() < 0.2:
        body["n"] = rng.randint(2, 4)
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
        f"application/json\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        counts["sent"] += 1
        if rng.random() < 0.1:  # in the middle of the request
            connection.sendall((head + content)[: rng.randrange(len(head) + len(content))])
            counts["hung_up"] += 1
            return
        connection.sendall(head + content)
        if rng.random() < 0.8:
            patience = rng.choice([0.002, 0.02, 0.2]) * rng.random()
            end = time.monotonic() + patience
            connection.settimeout(max(patience, 0.001))
            try:
                while time.monotonic() < end and connection.recv(4096):
                    pass
            except TimeoutError:
                pass
            counts["hung_up"] += 1
            return
        answer = b""
        while part := connection.recv(65536):
            answer += part
        counts[f"status_{answer[9:12].decode()}"] += 1


def client(
    port: int, model: str, context: int, seed: int, end: float, counts: Counter[str]
) -> None:
    rng = random.Random(seed)
    while time.monotonic() < end:
        try:
            send(port, model, context, rng, counts)
        except OSError as error:
            counts[type(error).__name__] += 1


def measure(run: Path, seconds: float, clients: int, seed: int) -> dict[str, Any]:
    """Return the counts of a server that clients hang up on for so many seconds."""
    port = free_port()
    command = [sys.executable, "-m", "seq2chat", "serve", str(run), "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            while get(port, "/health")[0] != 200:
                if server.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read())
                time.sleep(0.1)
            card = json.loads(get(port, "/v1/models")[1])["data"][0]
            counts: Counter[str] = Counter()
            end = time.monotonic() + seconds
            threads = [
                threading.Thread(
                    target=client, args=(port, card["id"], card["context"], seed + i, end, counts)
                )
                for i in range(clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            time.sleep(2)
            metrics = get(port, "/metrics")[1].decode().splitlines()
            names = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}
            left = {
                short: float(line.rsplit(" ", 1)[1])
                for name, short in names.items()
                for line in metrics
                if line.startswith(name + "{")
            }
            health = get(port, "/health")[0]
        finally:
            server.terminate()
            server.wait(60)
        log.seek(0)
        errors = log.read().count("Traceback")
    return {
        "seconds": seconds,
        **dict(sorted(counts.items())),
        **left,
        "tracebacks": errors,
        "health": health,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", nargs="?", type=Path, help="run or model folder; a tiny model if left out"
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or tiny_model(Path(folder) / "tiny")
        print(json.dumps(measure(run, options.seconds, options.clients, options.seed)))
