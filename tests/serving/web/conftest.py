"""A real browser and a real `seq2chat serve`, with tiny models that have memorized TALKS."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from serving.web.chat_page import SONG, TALKS

from seq2chat.config import GPTConfig
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import CHAT_TEMPLATE, END, START, Message, chat_tokens


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A base model and two chat models that have memorized TALKS. The second chat model is the
    first after more training."""
    plain = ByteBPE.train(["user assistant system", *TALKS, *TALKS.values()] * 3, 320)
    chat = plain.with_chat((START, END), "<|pad|>", CHAT_TEMPLATE)
    paths = {name: tmp_path_factory.mktemp("models") / name for name in ("ppo", "sft", "base")}
    # With seed 0, "Sing." ends after 1,349 tokens, sooner than a busy browser can stop it.
    torch.manual_seed(1)
    for tokenizer, names in ((plain, ["base"]), (chat, ["sft", "ppo"])):
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size, context=SONG + 1024, n_layer=1, n_head=2, d_model=64
        )
        model = make_model(config)
        for name in names:
            memorize(model, tokenizer)
            save_model(
                model, paths[name], eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
            )
            tokenizer.save(paths[name])
    return paths


def memorize(model, tokenizer):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = []
    for question, answer in TALKS.items():
        if tokenizer.chat_template:
            tokens = chat_tokens(
                tokenizer, [Message("user", question), Message("assistant", answer)]
            )
            ids = tokens.ids
            trained = tokens.trained
        else:
            prompt = [tokenizer.eos_id, *tokenizer.encode(question)]
            ids = [*prompt, *tokenizer.encode(f" {answer}"), tokenizer.eos_id]
            trained = [place >= len(prompt) for place in range(len(ids))]
        end = -2 if question == "Sing." else None
        ids = torch.tensor(ids[:end])
        rows.append((ids[None, :-1], ids[1:], torch.tensor(trained[1 : len(ids)])))
    model.train()
    for _ in range(40):
        loss = sum(
            torch.nn.functional.cross_entropy(model(inputs)[0][trained], labels[trained])
            for inputs, labels, trained in rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="session")
def server(folders, tmp_path_factory):
    """The address of `seq2chat serve` with the models in `folders`."""
    with serving(folders.values(), tmp_path_factory.mktemp("server") / "log.txt") as address:
        yield address


@contextmanager
def serving(runs, log, command="serve"):
    """Yield the address of `seq2chat serve` with these models, or of `watch` with these runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [*map(str, runs), "--port", str(port)]
    command = [sys.executable, "-m", "seq2chat", command, *options]
    # Without the step in C++, tokens are slow enough for a busy browser to stop an answer.
    environment = {**os.environ, "CXX": "false"}
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_until_healthy(address, process, log, seconds=60):
    for _ in range(seconds * 10):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser, server):
    context = browser.new_context(
        base_url=server, viewport={"width": 1280, "height": 800}, accept_downloads=True
    )
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def page(context, server):
    """A page at the server's address, with greedy answers.

    It must log no errors and make no requests to other hosts.
    """
    page = context.new_page()
    complaints = []
    urls = []
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and complaints.append(message.text),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.add_init_script(
        "localStorage['seq2chat.settings'] ??= '{\"temperature\": 0, \"maxTokens\": 120}'"
    )
    page.goto("/")
    page.get_by_role("heading", name="Ask your model").wait_for()
    page.expected_complaints = []
    yield page
    # Chromium itself logs each error response. A test that provokes one names it.
    unexpected = [
        text for text in complaints if not any(part in text for part in page.expected_complaints)
    ]
    assert unexpected == []
    assert [url for url in urls if not url.startswith((server, "blob:" + server))] == []
