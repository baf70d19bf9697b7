"""Actions on the chat page as a user does them, and what the page shows and stores."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from seq2chat.models.folder import load_model

needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None or find_spec("playwright") is None,
    reason="needs Chromium and playwright: apt-get install chromium, pip install playwright",
)

HELLO = "Hello there. How are you?"
FRUIT = "# Fruit\n\n1. An *apple* is **red**.\n2. A `lemon` is yellow.\n\n```\n<b>x</b>\n```"
TALKS = {
    "Hello?": HELLO,
    "Fruit?": FRUIT,
    "Sing.": "la" + " la" * 90,
}
"""The questions and answers that the models have memorized. The song has no end."""

SONG = 30_000
"""Tokens of a song that takes longer than the busiest browser needs to stop it."""


def message(page):
    return page.get_by_role("textbox", name="Message")


def ask(page, question, answered=True):
    """Send a question, and wait for the end of all answers if `answered`."""
    message(page).fill(question)
    page.keyboard.press("Enter")
    page.locator(".bubble", has_text=question).last.wait_for()
    if answered:
        at_rest(page)


def at_rest(page):
    page.get_by_role("button", name="Send").wait_for()


def cards(page):
    return page.locator(".card")


def text(page, card=-1):
    return cards(page).nth(card).locator(".text").inner_text()


def button(page, name):
    return page.get_by_role("button", name=name)


def tokens(page, card=-1):
    return cards(page).nth(card).locator(".text [data-token]")


def stored(page):
    """Return the conversations in the browser's storage."""
    entries = page.evaluate("Object.entries(localStorage)")
    return [json.loads(value) for key, value in entries if key.startswith("seq2chat.conversation.")]


def answers(page):
    return [
        answer
        for conversation in stored(page)
        for turn in conversation["turns"]
        for lane in turn["lanes"]
        for answer in lane["answers"]
    ]


def choose_model(page, name):
    page.get_by_role("combobox", name="Model").select_option(name)


def set_number(page, name, value):
    button(page, "Settings").click()
    field = page.get_by_role("spinbutton", name=name)
    field.fill(str(value))
    field.press("Tab")
    page.keyboard.press("Escape")


def most_likely_ids(folder, answer, begun=0):
    """Return the model's own most likely token at each place of an answer from `begun` on, given
    the tokens before it."""
    written = [token["id"] for token in answer["tokens"]]
    with torch.inference_mode():
        logits = load_model(folder)(torch.tensor([answer["promptIds"] + written]))[0]
    return logits[len(answer["promptIds"]) - 1 + begun : -1].argmax(-1).tolist()
