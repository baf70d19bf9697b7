"""What the page Inside costs: bytes and time to open it, the pointer, and a chat beside it.

    python benchmarks/inside.py >> benchmarks/results/LINES.jsonl            # 4 layers × 4 heads
    python benchmarks/inside.py --model smollm2 >> benchmarks/results/LINES.jsonl

Needs the system's Chromium and `playwright`. Every round opens the page in a fresh browser context,
without a cache, on a text that the server has traced already: the promise is about the page, "after
the pass". The time of the pass is printed beside it. `open` is the time from the navigation to the
drawn panel; all times are medians over the rounds. `chat` compares the tokens per second of a chat
alone and while another client walks through the page, in turns: a panel every two seconds, and
another text after eight of them. The map of all heads in *Surgery* is one pass per head, and not
part of it.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import torch
from peers import machine
from playwright.sync_api import Browser, Page, sync_playwright

from seq2chat.config import GPTConfig
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE

PANELS = ("flow", "attention", "lens", "next", "writers", "surgery", "neurons", "hand")
WORDS = (
    *("The", "museum", "on", "the", "hill", "has", "seven", "rooms", "and", "a", "guide"),
    *("speaks", "about", "the", "old", "river", "there"),
)
SHAPE = {"n_layer": 4, "n_head": 4, "d_model": 128, "context": 512}
CHAT_TOKENS = 128
LOOK_SECONDS = 2.0  # between two panels of a person who looks
PANELS_PER_TEXT = 8
LOOKS = (
    {"site": "layers.*.self_attn.heads", "layer": 0, "head": 1},
    {"site": "logits", "position": -1},
    {"site": "layers.*.mlp.activation", "layer": 1, "position": -1},
    {"site": "layers.*.self_attn.heads.query", "layer": 2, "until": 8},
)
"""What the panels request of a trace."""
HOVER = """
() => {
  const canvas = document.querySelector("canvas.matrix");
  const box = canvas.getBoundingClientRect();
  const times = [];
  for (let i = 0; i < 300; i++) {
    const clientX = box.left + ((i * 37) % 100) / 100 * box.width;
    const clientY = box.top + ((i * 61) % 100) / 100 * box.height;
    const start = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
    document.body.offsetHeight; // the layout belongs to it
    times.push(performance.now() - start);
  }
  return times;
}
"""


def small_model(folder: Path) -> Path:
    """Write an untrained GPT with 4 layers and 4 heads."""
    torch.manual_seed(0)
    tokenizer = ByteBPE.train([" ".join(WORDS)] * 9, 300)
    save_model(make_model(GPTConfig(vocab_size=tokenizer.vocab_size, **SHAPE)), folder)
    tokenizer.save(folder)
    return folder


@contextlib.contextmanager
def serving(model: str) -> Iterator[str]:
    """Serve the model meanwhile, and yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "seq2chat", "serve", model, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                    break
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def token_ids(url: str, model: str, n_tokens: int) -> list[int]:
    """Return the ids of a text of `n_tokens` tokens."""
    text = " ".join(WORDS * (1 + n_tokens // 8))
    ids = post(f"{url}/tokenize", {"model": model, "prompt": text})["tokens"]
    assert len(ids) >= n_tokens, len(ids)
    return ids[:n_tokens]


def opened(browser: Browser, address: str) -> tuple[Page, float, int]:
    """Open a page without a cache; return it, the milliseconds until it is drawn, and the bytes."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    sizes: list[int] = []
    client = page.context.new_cdp_session(page)
    client.send("Network.enable")
    client.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.locator("#panel:not([aria-busy]) .panel").wait_for()
    seconds = time.perf_counter() - start
    page.wait_for_timeout(300)  # for the last events
    return page, 1000 * seconds, int(sum(sizes))


def page_costs(browser: Browser, url: str, ids: list[int], rounds: int) -> dict[str, dict]:
    """Return the costs of opening each panel, and the time of the pointer in `attention`."""
    costs = {}
    for panel in PANELS:
        state = {"ids": ".".join(map(str, ids)), "panel": panel}
        times = []
        sizes = []
        hovers: list[float] = []
        for _ in range(rounds + 1):
            page, milliseconds, n_bytes = opened(browser, f"{url}/inside#{urlencode(state)}")
            times.append(milliseconds)
            sizes.append(n_bytes)
            if panel == "attention":
                hovers += page.evaluate(HOVER)
            page.context.close()
        # The first opening made the trace and its tensors.
        costs[panel] = {"ms": round(statistics.median(times[1:])), "bytes": max(sizes)}
        if hovers:
            hovers.sort()
            costs[panel]["hover_ms"] = {
                "median": round(hovers[len(hovers) // 2], 2),
                "p99": round(hovers[len(hovers) * 99 // 100], 2),
            }
    return costs


def chat_speed(url: str, model: str) -> float:
    """Return the new tokens per second of a completion, its first token left out."""
    body = {"model": model, "prompt": " ".join(WORDS), "max_tokens": CHAT_TOKENS, "stream": True}
    body["temperature"] = 0
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    times = []
    with urllib.request.urlopen(request, timeout=600) as response:
        times += [time.perf_counter() for line in response if line.startswith(b"data: {")]
    assert len(times) >= CHAT_TOKENS // 4, "The model ended too early to measure its speed."
    return (len(times) - 1) / (times[-1] - times[0])


def chat_costs(url: str, model: str, ids: list[int], rounds: int) -> dict[str, float]:
    """Return the speed of a chat alone, and while someone looks, measured in turns."""
    looking = threading.Event()
    ending = threading.Event()

    def look() -> None:
        n = 0
        while not ending.wait(LOOK_SECONDS):
            if not looking.is_set():
                continue
            if n % PANELS_PER_TEXT == 0:  # another text, so that nothing is kept from before
                tokens = ids[: len(ids) - n // PANELS_PER_TEXT % 9]
                reply = post(f"{url}/api/traces", {"model": model, "tokens": tokens})
            query = urlencode(LOOKS[n % len(LOOKS)])
            address = f"{url}/api/traces/{reply['id']}/tensor?{query}"
            urllib.request.urlopen(address, timeout=600).read()
            n += 1

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    chat_speed(url, model)  # once, to warm up
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for is_looking in (False, True):
            looking.set() if is_looking else looking.clear()
            speeds[is_looking].append(chat_speed(url, model))
    ending.set()
    thread.join()
    alone, beside = (statistics.median(speeds[is_looking]) for is_looking in (False, True))
    return {
        "tokens_per_second": round(alone, 1),
        "while_looking": round(beside, 1),
        "fall": round(1 - beside / alone, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="model to serve [default: 4 layers × 4 heads]")
    parser.add_argument("--tokens", type=int, default=0, help="[default: 64, 128 with --model]")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    n_tokens = options.tokens or (128 if options.model else 64)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.model or str(small_model(Path(folder) / "small"))) as url,
        sync_playwright() as driver,
    ):
        name = json.load(urllib.request.urlopen(f"{url}/v1/models"))["data"][0]["id"]
        ids = token_ids(url, name, n_tokens)
        start = time.perf_counter()
        post(f"{url}/api/traces", {"model": name, "tokens": ids, "top": 24})
        traced = time.perf_counter() - start
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        line = {
            "benchmark": "inside",
            "machine": machine(),
            "load": round(os.getloadavg()[0], 1),  # before; other programs make it slower
            "model": options.model or "4 layers × 4 heads",
            "tokens": n_tokens,
            "pass_ms": round(1000 * traced),
            "open": page_costs(browser, url, ids, options.rounds),
            "chat": chat_costs(url, name, ids, options.rounds),
        }
        browser.close()
    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
