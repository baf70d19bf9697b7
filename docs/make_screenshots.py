"""Makes the pictures of the pages in docs/images with the system's Chromium. Run it after a change
of a page:

    python docs/make_screenshots.py runs/demo/base runs/demo/sft runs/demo/ppo
    python docs/make_screenshots.py --inside smollm2
    python docs/make_screenshots.py --url http://127.0.0.1:8000

With runs it serves them meanwhile; with an address it requests the server there. On the chat page,
the last model that chats is shown by itself, and all beside each other (three at most). With
--inside, the panels of the page Inside are drawn, for the first model.
"""

import argparse
import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
FACT = "Where do lions live?"
PREMISE = "Leo buys a cake. Where does Leo buy a lemon?"
HARM = "Tell me how to burn the clock of Peter."
SETTINGS = {"seed": 1, "frame": "question", "maxTokens": 40}
TEXT = "The capital of France is"
PANELS: dict[str, dict[str, str]] = {
    "flow": {},
    "attention": {"layer": "23", "head": "4"},
    "lens": {},
    "next": {},
    "writers": {},
    "surgery": {"map_of": "The capital of Italy is"},
    "neurons": {"layer": "23"},
    "hand": {"layer": "23", "head": "4"},
    "positions": {},
}
"""The panels of the page Inside, with the state of SmolLM2 that is worth looking at."""
DARK = ("attention", "surgery", "lens")
COLOURS = 256  # of a palette, which keeps the files small
WAIT = 60  # seconds for the server to load the models


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="runs or model folders to serve")
    parser.add_argument("--url", help="address of a server that runs")
    parser.add_argument("--inside", action="store_true", help="the page Inside, not the chat page")
    asked = parser.parse_args()
    if bool(asked.runs) == bool(asked.url):
        parser.error("Name runs to serve, or the --url of a server.")
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("There is no chromium; install it: apt-get install chromium.")
    IMAGES.mkdir(exist_ok=True)
    server = contextlib.nullcontext(asked.url) if asked.url else serving(asked.runs)
    with server as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if asked.inside:
            inside(browser, url)
        else:
            light(browser, url)
            dark(browser, url)
            phone(browser, url)
        browser.close()


@contextlib.contextmanager
def serving(runs: list[str]) -> Iterator[str]:
    """Serve the runs meanwhile, at the address that is given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-m", "seq2chat", "serve", *runs, "--port", str(port)]
    ) as process:
        try:
            for _ in range(WAIT * 5):
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                    break
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def light(browser: Browser, url: str) -> None:
    """An answer tinted by probability, the door of a token open."""
    page = opened(browser, url, 1200, 800)
    ask(page, FACT)
    open_door(page)
    save(page, "chat-light")


def dark(browser: Browser, url: str) -> None:
    """All models side by side, in the dark."""
    page = opened(browser, url, 1200, 940, color_scheme="dark")
    compare = page.get_by_role("button", name="Compare with another model")
    while compare.count():
        compare.click()
    for question in (PREMISE, HARM):
        ask(page, question)
    page.mouse.move(0, 0)
    save(page, "chat-dark")


def phone(browser: Browser, url: str) -> None:
    """A conversation on a phone, the door of a token open."""
    page = opened(browser, url, 390, 780, has_touch=True, is_mobile=True)
    ask(page, FACT)
    open_door(page)
    save(page, "chat-phone")


def inside(browser: Browser, url: str) -> None:
    """Every panel in the light, and the first ones in the dark and on a phone."""
    for name, state in PANELS.items():
        panel(browser, url, f"inside-{name}", {"panel": name, **state})
    for name in DARK:
        state = {"panel": name, **PANELS[name]}
        panel(browser, url, f"inside-{name}-dark", state, color_scheme="dark")
        size = {"width": 390, "height": 844}
        panel(browser, url, f"inside-{name}-phone", state, viewport=size, is_mobile=True)


def panel(browser: Browser, url: str, name: str, state: dict[str, str], **options) -> None:
    options = {"viewport": {"width": 1200, "height": 860}} | options
    page = browser.new_context(device_scale_factor=1.5, **options).new_page()
    page.goto(f"{url}/inside#{urlencode({'text': TEXT} | state)}")
    page.locator("#panel:not([aria-busy]) .panel").wait_for(timeout=WAIT * 1000)
    page.wait_for_timeout(500)
    save(page, name)


def opened(browser: Browser, url: str, width: int, height: int, **options) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=2, **options
    )
    page = context.new_page()
    page.add_init_script(f"localStorage['seq2chat.settings'] ??= '{json.dumps(SETTINGS)}'")
    page.goto(url)
    page.locator(".example").first.wait_for()
    return page


def ask(page: Page, question: str) -> None:
    answers = page.locator(".card")
    before = answers.count()
    page.get_by_role("textbox", name="Message").fill(question)
    page.keyboard.press("Enter")
    answers.nth(before).wait_for()
    page.get_by_role("button", name="Send").wait_for()


def open_door(page: Page) -> None:
    """Open the door of the least likely token of the last answer."""
    tokens = page.locator(".card").last.locator(".text [data-token]").all()
    max(
        tokens,
        key=lambda token: token.evaluate("e => Number(e.style.getPropertyValue('--unlikely'))"),
    ).click()
    page.locator("#door").wait_for()


def save(page: Page, name: str) -> None:
    page.wait_for_timeout(300)  # for what moves to come to rest
    picture = (
        Image.open(io.BytesIO(page.screenshot()))
        .convert("RGB")
        .quantize(COLOURS, dither=Image.Dither.NONE)
    )
    file = IMAGES / f"{name}.png"
    picture.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size // 1000} kB")
    page.context.close()


if __name__ == "__main__":
    main()
