"""Makes the pictures of the pages in docs/images with the system's Chromium. Run it after a change
of a page:

    python docs/make_screenshots.py runs/demo/base runs/demo/sft runs/demo/ppo
    python docs/make_screenshots.py smollm2 --scenes gpt
    python docs/make_screenshots.py runs/en-de --scenes transformer
    python docs/make_screenshots.py runs/en-de-rnn --scenes rnn
    python docs/make_screenshots.py runs/repeat/checkpoints/* --scenes checkpoints
    python docs/make_screenshots.py runs/en-de runs/en-de-rnn runs/repeat --scenes training
    python docs/make_screenshots.py --url http://127.0.0.1:8000

With runs it serves them meanwhile; with an address it requests the server there. On the chat page,
the first model that chats is shown by itself, and all beside each other (three at most). The other
scenes are the panels of the pages Inside and Training: light, dark, and on a phone.
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
WHERE = "Julia is in Peru. Omar is in the library. Where is Omar?"
PREMISE = "Leo buys a cake. Where does Leo buy a lemon?"
HARM = "Tell me how to burn the clock of Peter."
SETTINGS = {"seed": 1, "frame": "question", "maxTokens": 40}
TEXT = "The capital of France is"
CAPTION = "Two young men are walking through the snow."
Scenes = dict[str, dict[str, str]]
SCENES: dict[str, Scenes] = {
    "gpt": {
        "inside-flow": {"panel": "flow"},
        "inside-tokens": {"panel": "tokens", "text": "Unbelievably, the antelopes outran them."},
        "inside-attention": {"panel": "attention", "layer": "23", "head": "4"},
        "inside-lens": {"panel": "lens"},
        "inside-next": {"panel": "next"},
        "inside-writers": {"panel": "writers"},
        "inside-surgery": {"panel": "surgery", "map_of": "The capital of Italy is"},
        "inside-neurons": {"panel": "neurons", "layer": "23"},
        "inside-hand": {"panel": "hand", "layer": "23", "head": "4"},
        "inside-positions": {"panel": "positions"},
        "inside-lsi": {"panel": "lsi"},
    },
    "transformer": {
        "inside-cross": {
            "panel": "attention",
            "map": "decoder.*.cross_attn.heads",
            "layer": "2",
            "head": "2",
        },
        "inside-beams": {"panel": "beams"},
    },
    "rnn": {"inside-alignment": {"panel": "attention"}, "inside-states": {"panel": "states"}},
    "checkpoints": {"inside-training": {"panel": "training", "text": "bado keru bado"}},
    "training": {
        "training-curves": {"runs": "en-de,en-de-rnn"},
        "training-samples": {"runs": "en-de,en-de-rnn", "view": "samples"},
        "training-probe": {"runs": "en-de", "view": "probe"},
        "training-heads": {"runs": "repeat", "view": "heads"},
        "training-gradients": {"runs": "en-de", "view": "gradients"},
        "training-bleu": {"runs": "en-de,en-de-rnn", "view": "bleu"},
    },
}
"""The state of each picture that is worth looking at, by the kind of model."""
STYLES = {
    "": {},
    "-dark": {"color_scheme": "dark"},
    "-phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True},
}
COLORS = (256, 128, 64, 32)  # of a palette: as many as fit the size
MAX_BYTES = 60_000
WAIT = 60  # seconds for the server to load the models


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="runs or model folders to serve")
    parser.add_argument("--url", help="address of a server that runs")
    parser.add_argument("--scenes", choices=SCENES, help="panels to draw [default: the chat page]")
    parser.add_argument("--only", default="", help="names of the pictures to draw")
    options = parser.parse_args()
    if bool(options.runs) == bool(options.url):
        parser.error("Name runs to serve, or the --url of a server.")
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("There is no chromium; install it: apt-get install chromium.")
    IMAGES.mkdir(exist_ok=True)
    command = "watch" if options.scenes == "training" else "serve"
    server = contextlib.nullcontext(options.url) if options.url else serving(command, options.runs)
    with server as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if options.scenes:
            panels(browser, url, options.scenes, options.only)
        else:
            light(browser, url)
            dark(browser, url)
            phone(browser, url)
        browser.close()


@contextlib.contextmanager
def serving(command: str, runs: list[str]) -> Iterator[str]:
    """Serve or watch the runs meanwhile, at the address that is given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-m", "seq2chat", command, *runs, "--port", str(port)]
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
    ask(page, WHERE)
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
    ask(page, WHERE)
    open_door(page)
    save(page, "chat-phone")


def panels(browser: Browser, url: str, kind: str, only: str) -> None:
    """Every panel of a kind, light, dark and on a phone."""
    for name, state in SCENES[kind].items():
        if only not in name:
            continue
        page = "training" if kind == "training" else "inside"
        text = {} if kind == "training" else {"text": TEXT if kind == "gpt" else CAPTION}
        address = f"{url}/{page}#{urlencode(text | state)}"
        for suffix, style in STYLES.items():
            panel(browser, address, f"{name}{suffix}", style)


def panel(browser: Browser, address: str, name: str, style: dict) -> None:
    options = {"viewport": {"width": 1200, "height": 860}} | style
    is_phone = "viewport" in style
    context = browser.new_context(device_scale_factor=1.5 if is_phone else 1.25, **options)
    page = context.new_page()
    page.set_default_timeout(WAIT * 1000)
    page.goto(address)
    page.locator("#panel:not([aria-busy]) .panel").wait_for()
    measure = page.get_by_role("button", name="Measure BLEU")
    if measure.count():
        measure.click()
    page.locator("#panel [aria-busy]").wait_for(state="detached")
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
    """Write a picture with the largest palette that fits MAX_BYTES, or with the smallest."""
    page.wait_for_timeout(300)  # for what moves to come to rest
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    file = IMAGES / f"{name}.png"
    for n_color in COLORS:
        picture.quantize(n_color, dither=Image.Dither.NONE).save(file, optimize=True)
        if file.stat().st_size <= MAX_BYTES:
            break
    print(f"{file}: {file.stat().st_size // 1000} kB, {n_color} colors")
    page.context.close()


if __name__ == "__main__":
    main()
