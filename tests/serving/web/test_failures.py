"""Errors, keys and models that cannot chat."""

from serving.web.chat_page import HELLO, ask, button, needs_browser, text

pytestmark = needs_browser


CHAT = "**/v1/chat/completions"
ERRORS = [
    (status, {"Retry-After": "7"}, "It is wrong in this way.") for status in (429, 503, 404, 400)
]


def test_error_is_a_sentence_with_a_retry(page):
    error = {
        "error": {
            "message": "It is wrong in this way.",
            "type": "error",
            "param": None,
            "code": None,
        }
    }
    for status, headers, sentence in ERRORS:
        page.expected_complaints.append(f"status of {status}")
        response = {"status": status, "headers": headers, "json": error}
        page.route(CHAT, lambda route: route.fulfill(**response))  # noqa: B023
        ask(page, "Hello?")
        assert page.get_by_role("alert").locator("p").inner_text() == sentence
        page.unroute(CHAT)
        button(page, "Try again").click()
        page.get_by_text("ended", exact=True).wait_for()
        assert text(page) == HELLO and page.get_by_role("alert").count() == 0
        button(page, "New conversation").click()


def test_server_failure_is_explained(page):
    page.expected_complaints.append("net::ERR")
    page.route(CHAT, lambda route: route.abort())
    ask(page, "Hello?")
    page.get_by_text("Is seq2chat serve still running?").wait_for()
    page.unroute(CHAT)
    page.route(
        CHAT,
        lambda route: route.fulfill(
            content_type="text/event-stream", body='data: {"error": {"message": "It broke."}}\n\n'
        ),
    )
    button(page, "Try again").click()
    page.get_by_text("It broke.").wait_for()
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    page.get_by_text("Is seq2chat serve still running?").wait_for()
    page.unroute("**/v1/models")
    button(page, "Try again").click()
    page.get_by_text("It broke.").wait_for()  # the conversation is there again


def test_key_is_prompted_and_stored_in_the_tab(context, page):
    page.expected_complaints.append("status of 401")

    def guard(route):
        if route.request.headers.get("authorization") == "Bearer open sesame":
            return route.continue_()
        error = {
            "error": {
                "message": "No key.",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        }
        return route.fulfill(status=401, json=error)

    page.route("**/v1/**", guard)
    page.reload()
    field = page.locator("#key-field")
    field.fill("sésame’")  # no header can hold it
    page.keyboard.press("Enter")
    assert field.is_visible() and not field.evaluate("field => field.validity.valid")
    field.fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The server refused this key.").wait_for()
    assert page.evaluate("sessionStorage['seq2chat.key']") is None
    field.fill("open sesame")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Ask your model").wait_for()
    ask(page, "Hello?")
    assert text(page) == HELLO
    assert page.evaluate("sessionStorage['seq2chat.key']") == "open sesame"
    assert page.evaluate("JSON.stringify(localStorage).includes('sesame')") is False


def test_page_without_chat_models(page):
    """It describes the models, and translates."""
    cards = [
        {"id": "en-de", "family": "transformer", "chat": False},
        {"id": "masks", "family": "bert", "chat": False},
    ]
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": cards}))
    sent = []

    def translate(route):
        sent.append(route.request.post_data_json)
        return route.fulfill(json={"choices": [{"text": "Hallo.\n\nWie geht es?"}]})

    page.route("**/v1/completions", translate)
    page.reload()
    page.get_by_role("heading", name="None of these models can chat").wait_for()
    assert (
        "masks is a BERT" in page.locator(".welcome").inner_text()
        and not page.locator("#composer").is_visible()
    )
    page.get_by_label("Text for en-de").fill("Hello.\n\nHow are you?")
    button(page, "Translate").click()
    page.get_by_text("Wie geht es?").wait_for()
    assert page.locator(".translation").text_content() == "Hallo.\n\nWie geht es?"
    assert sent == [{"model": "en-de", "prompt": "Hello.\n\nHow are you?"}]
