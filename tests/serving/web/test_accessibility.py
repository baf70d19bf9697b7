"""The page by keyboard, for screen readers, in the dark and on a phone."""

import pytest
from serving.web.chat_page import ask, at_rest, button, message, needs_browser, tokens

pytestmark = needs_browser


def test_everything_works_by_keyboard(page):
    page.keyboard.type("Hello?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Hi")
    assert message(page).input_value() == "Hello?\nHi"
    message(page).fill("Hello?")
    page.keyboard.press("Enter")
    page.get_by_text("ended", exact=True).wait_for()

    for _ in range(20):  # backwards to the answer
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.closest('.doors') !== null"):
            break
    assert page.evaluate("document.activeElement.dataset.token") == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.token") == "2"
    assert page.evaluate("document.activeElement.getAttribute('role')") == "button"
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.dataset.token") == "2"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_text("2/2").wait_for()
    at_rest(page)

    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Find").fill("new conv")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Ask your model").wait_for()
    page.keyboard.press("Control+k")
    page.keyboard.type("how are you")  # words of the answer
    page.get_by_role("option", name="Hello?").wait_for()
    page.keyboard.press("Enter")
    page.get_by_text("2/2").wait_for()
    message(page).focus()
    page.keyboard.press("ArrowUp")
    assert page.get_by_role("textbox", name="Edit the question").input_value() == "Hello?"


def test_every_control_has_a_name(page):
    ask(page, "Hello?")
    button(page, "Settings").click()
    for role in ("button", "textbox", "combobox", "spinbutton", "radio", "link"):
        for control in page.get_by_role(role).all():
            assert control.evaluate(
                "e => (e.ariaLabel ?? e.labels?.[0]?.innerText ?? e.innerText).trim()"
            ), role


def test_dark_follows_system_and_switch(context, page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert dark != light
    page.emulate_media(color_scheme="light")
    button(page, "Dark colors").click()
    assert paper() == dark
    page.reload()
    assert paper() == dark


def test_phone_layout_fits_the_screen(page):
    page.set_viewport_size({"width": 375, "height": 667})
    ask(page, "Fruit?")
    button(page, "Compare with another model").click()
    page.locator("[data-lanes='2']").wait_for()
    at_rest(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    tokens(page, 0).first.click()
    box = page.locator("#door").bounding_box()
    assert (
        box["x"] == 0
        and box["width"] == 375
        and box["y"] + box["height"] == pytest.approx(667, abs=1)
    )
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Conversations", exact=True).click()
    button(page, "New conversation").click()
    page.get_by_role("heading", name="Ask your model").wait_for()
    assert page.locator("#menu").get_attribute("aria-expanded") == "false"
