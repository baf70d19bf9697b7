"""Answers in the page: streaming, stopping, branches and several models."""

from serving.web.chat_page import (
    FRUIT,
    HELLO,
    SONG,
    answers,
    ask,
    at_rest,
    button,
    cards,
    most_likely_ids,
    needs_browser,
    set_number,
    text,
    tokens,
)

from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import Message, prompt_ids

pytestmark = needs_browser


def test_answer_streams_and_ends(page):
    set_number(page, "Maximum tokens per answer", SONG)
    ask(page, "Sing.", answered=False)
    tokens(page).first.wait_for()
    n_begun = tokens(page).count()
    tokens(page).nth(n_begun).wait_for()  # more of it is drawn before its end
    button(page, "Stop").click()
    at_rest(page)
    assert "stopped" in cards(page).inner_text()
    button(page, "New conversation").click()
    ask(page, "Hello?")
    assert text(page) == HELLO
    assert "ended" in cards(page).inner_text()
    assert page.locator("#live").inner_text() == f"ppo answered: {HELLO}"  # once, at the end
    assert page.evaluate("document.activeElement.id") == "composer-text"


def test_stop_and_continue(page):
    """Stop ends the request in the engine, and Continue resumes the answer."""
    before = measured(page, "generation_tokens_total")
    set_number(page, "Maximum tokens per answer", SONG)
    ask(page, "Sing.", answered=False)
    tokens(page).first.wait_for()
    button(page, "Stop").click()
    at_rest(page)
    assert "stopped" in cards(page).inner_text()
    length = len(answers(page)[0]["tokens"])
    assert 0 < length < SONG
    while measured(page, "num_requests_running"):
        page.wait_for_timeout(20)
    assert measured(page, "generation_tokens_total") - before < SONG
    set_number(page, "Maximum tokens per answer", 20)
    button(page, "Continue").click()
    page.get_by_text("cut off at the limit").wait_for()
    [answer] = answers(page)
    assert len(answer["tokens"]) == length + 20
    assert text(page).split(" ")[-5:] == ["la"] * 5


def measured(page, name):
    """Return the server's metric `name`, summed over the models."""
    lines = page.request.get("/metrics").text().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))


def test_escape_stops(page):
    set_number(page, "Maximum tokens per answer", SONG)
    ask(page, "Sing.", answered=False)
    tokens(page).nth(5).wait_for()
    page.keyboard.press("Escape")
    at_rest(page)
    assert answers(page)[0]["finish"] == "stopped"


def test_cut_off_answer_is_completed(page):
    """It ends where it would have ended without the cut."""
    set_number(page, "Maximum tokens per answer", 3)
    ask(page, "Hello?")
    assert HELLO.startswith(text(page)) and text(page) != HELLO
    set_number(page, "Maximum tokens per answer", 60)
    button(page, "Continue").click()
    page.get_by_text("ended", exact=True).wait_for()
    assert text(page) == HELLO
    assert len(answers(page)) == 1


def test_regenerating_keeps_the_old_answer(page):
    ask(page, "Hello?")
    set_number(page, "Temperature", 2)
    set_number(page, "Seed", 5)
    button(page, "Answer again").click()
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    other = text(page)
    button(page, "Previous answer").click()
    assert text(page) == HELLO
    page.keyboard.press("Enter")  # the focus stays on the arrow, which wraps around
    page.get_by_text("2/2").wait_for()
    assert text(page) == other


def test_turns_follow_the_chosen_answer(page):
    ask(page, "Hello?")
    ask(page, "Fruit?")
    button(page, "Answer again").first.click()
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    assert cards(page).count() == 1  # the second question belongs to the first answer
    button(page, "Previous answer").click()
    assert cards(page).count() == 2


def test_answer_is_copied_verbatim(context, page):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "Fruit?")
    button(page, "Copy the answer").click()
    page.get_by_text("Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == FRUIT


def test_edited_question_is_a_branch(page):
    ask(page, "Hello?")
    button(page, "Edit and ask again").click()
    field = page.get_by_role("textbox", name="Edit the question")
    assert field.input_value() == "Hello?"
    field.fill("Fruit?")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Fruit").wait_for()
    at_rest(page)
    assert page.locator(".bubble").inner_text() == "Fruit?"
    button(page, "Previous question").click()
    assert page.locator(".bubble").inner_text() == "Hello?"
    assert text(page) == HELLO


def test_prompt_is_instructions_and_conversation(page, folders):
    button(page, "Settings").click()
    page.get_by_role("textbox", name="Instructions").fill("Be brief.")
    page.keyboard.press("Escape")
    ask(page, "Hello?")
    first = text(page)
    ask(page, "And <|im_end|> you?")
    tokenizer = ByteBPE.load(folders["ppo"])
    messages = [
        ("system", "Be brief."),
        ("user", "Hello?"),
        ("assistant", first),
        ("user", "And <|im_end|> you?"),
    ]
    expected = prompt_ids(tokenizer, [Message(role, content) for role, content in messages])
    assert answers(page)[1]["promptIds"] == expected


def test_long_conversation_forgets_its_beginning(page):
    """The page says so."""
    page.route("**/v1/models", lambda route: smaller_context(route, 160))
    page.reload()
    page.get_by_role("heading", name="Ask your model").wait_for()
    for _ in range(3):
        ask(page, "Hello? " * 6)
    page.get_by_text("The first question no longer fits the context").wait_for()
    assert len(answers(page)[-1]["promptIds"]) <= 160


def smaller_context(route, context):
    models = route.fetch().json()
    for model in models["data"]:
        model["context"] = context
    route.fulfill(json=models)


def test_models_answer_side_by_side(page, folders):
    ask(page, "Hello?")
    button(page, "Compare with another model").click()
    page.locator("[data-lanes='2']").wait_for()
    at_rest(page)
    assert cards(page).count() == 2  # the second model answers the last question at once
    button(page, "Compare with another model").click()
    page.locator("[data-lanes='3']").wait_for()
    at_rest(page)
    ask(page, "Fruit?")
    assert cards(page).count() == 6
    assert [card.get_attribute("aria-label") for card in cards(page).all()] == [
        "ppo",
        "sft",
        "base",
    ] * 2
    ppo, sft, _ = answers(page)[-3:]
    for folder, answer in ((folders["sft"], sft), (folders["ppo"], ppo)):
        messages = [
            Message("user", "Hello?"),
            Message("assistant", HELLO),
            Message("user", "Fruit?"),
        ]
        assert answer["promptIds"] == prompt_ids(ByteBPE.load(folder), messages)
        assert [token["id"] for token in answer["tokens"]] == most_likely_ids(folder, answer)
    button(page, "Remove base").click()
    ask(page, "Hello?")
    assert cards(page).count() == 8
