"""`seq2chat serve` over the models that the fixture `folders` names, and a real browser in
front."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest


@pytest.fixture(scope="session")
def server(folders, tmp_path_factory):
    """The address of `seq2chat serve` with these models."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        sys.executable,
        "-m",
        "seq2chat",
        "serve",
        *map(str, folders.values()),
        "--port",
        str(port),
    ]
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=os.environ) as process,
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
    """A page at the server's address, with greedy answers. Whatever it does, it says nothing on the
    console that is an error, and asks no other address than the server's."""
    page = context.new_page()
    complaints, asked = [], []
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and complaints.append(message.text),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(
        "localStorage['seq2chat.settings'] ??= '{\"temperature\": 0, \"maxTokens\": 120}'"
    )
    page.goto("/")
    page.get_by_role("heading", name="Ask your model").wait_for()
    page.expected_complaints = []
    yield page
    # Chromium itself logs each response that is an error; a test that provokes one says which.
    unexpected = [
        text for text in complaints if not any(part in text for part in page.expected_complaints)
    ]
    assert unexpected == []
    assert [url for url in asked if not url.startswith((server, "blob:" + server))] == []
