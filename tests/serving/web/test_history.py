"""Conversations in the browser's storage, in files and in several tabs."""

import json

from serving.web.chat_page import (
    HELLO,
    SONG,
    answers,
    ask,
    at_rest,
    button,
    cards,
    needs_browser,
    set_number,
    stored,
    text,
    tokens,
)

pytestmark = needs_browser


def test_conversations_survive_a_reload(page):
    ask(page, "Hello?")
    button(page, "New conversation").click()
    ask(page, "Fruit?")
    page.reload()
    page.get_by_role("heading", name="Fruit").wait_for()  # the last one is open
    page.get_by_role("navigation").get_by_role("button", name="Hello?", exact=True).click()
    assert text(page) == HELLO
    tokens(page).nth(1).click()
    assert page.get_by_role("dialog").get_by_role("button").count() == 10


WHOLE = """(turns) => Object.entries(localStorage).some(([key, value]) => {
    if (!key.startsWith("seq2chat.conversation.")) return false;
    const answers = JSON.parse(value).turns.map((turn) => turn.lanes[0].answers);
    return answers.length === turns && answers.every((lane) => lane.every(({ finish }) => finish));
})"""
"""True if a conversation of that many turns is stored with complete answers."""


def test_two_tabs_merge_their_questions(context, page):
    """Also while one of them writes an answer. Merged turns work like all others."""
    ask(page, "Hello?")
    other = context.new_page()
    other.goto("/")
    other.get_by_role("navigation").get_by_role("button", name="Hello?", exact=True).click()
    ask(page, "Sing.", answered=False)
    tokens(page).nth(2).wait_for()
    ask(other, "Fruit?")
    at_rest(page)
    for tab in (page, other):
        tab.wait_for_function(f"({WHOLE})(3)")
    [kept] = stored(page)
    assert {turn["question"] for turn in kept["turns"]} == {"Hello?", "Sing.", "Fruit?"}
    cards(page).last.get_by_role("button", name="Answer again").click()
    at_rest(page)
    assert sum(len(turn["lanes"][0]["answers"]) for turn in stored(page)[0]["turns"]) == 4


def test_overwritten_answer_is_stored_again(context, page):
    """Both tabs stored at the same time, and the one without this answer came last."""
    ask(page, "Hello?")
    ask(page, "Fruit?")
    other = context.new_page()
    other.goto("/")
    other.evaluate("""() => {
        const [key, value] = Object.entries(localStorage)
            .find(([key]) => key.startsWith("seq2chat.conversation."));
        const kept = JSON.parse(value);
        Object.assign(kept.turns[1].lanes[0].answers[0], { tokens: [], finish: null });
        localStorage.setItem(key, JSON.stringify(kept));
    }""")
    page.wait_for_function(f"({WHOLE})(2)")
    assert all(answer["tokens"] for answer in answers(page))


def test_rename_export_delete_undo_import(page, tmp_path):
    ask(page, "Hello?")
    history = page.get_by_role("navigation")
    history.get_by_role("button", name="Hello?", exact=True).hover()
    button(page, "Rename Hello?").click()
    page.get_by_role("textbox", name="Name of the conversation").fill("Greetings")
    page.keyboard.press("Enter")
    entry = history.get_by_role("button", name="Greetings", exact=True)
    entry.hover()
    with page.expect_download() as download:
        button(page, "Export Greetings").click()
    file = tmp_path / "export.json"
    download.value.save_as(file)
    [exported] = json.loads(file.read_text())["conversations"]
    assert exported["title"] == "Greetings" and exported["turns"][0]["question"] == "Hello?"

    entry.hover()
    button(page, "Delete Greetings").click()
    assert entry.count() == 0 and stored(page) == []
    button(page, "Undo").click()
    entry.wait_for()
    entry.hover()
    button(page, "Delete Greetings").click()
    page.get_by_label("Import conversations").last.set_input_files(file)
    entry.click()
    assert text(page) == HELLO


def test_deleting_a_running_conversation(page):
    set_number(page, "Maximum tokens per answer", SONG)
    ask(page, "Sing.", answered=False)
    tokens(page).nth(5).wait_for()
    page.get_by_role("navigation").get_by_role("button", name="Sing.", exact=True).hover()
    button(page, "Delete Sing.").click()
    page.get_by_role("heading", name="Ask your model").wait_for()
    page.wait_for_timeout(100)  # for late events
    assert stored(page) == []


def test_invalid_import_is_refused(page):
    for content in (
        "no JSON",
        "[]",
        '{"conversations": [{"version": 1}]}',
        '{"version": 2}',
        "null",
    ):
        file = {"name": "x.json", "mimeType": "application/json", "buffer": content.encode()}
        page.get_by_label("Import conversations").last.set_input_files(file)
        page.get_by_text("This file is not").wait_for()
        page.evaluate("document.getElementById('toast').replaceChildren()")
    assert stored(page) == []


def test_full_storage_drops_old_alternatives_first(page):
    ask(page, "Hello?")
    button(page, "New conversation").click()
    page.evaluate("""() => {
        for (let size = 1 << 20; size >= 1; size >>= 1)
            for (let i = 0; ; i++)
                try { localStorage[`filler ${size} ${i}`] = "x".repeat(size) } catch { break }
    }""")
    ask(page, "Hello?")
    first, second = sorted(stored(page), key=lambda conversation: conversation["updated"])
    assert all(
        "top" not in token for token in first["turns"][0]["lanes"][0]["answers"][0]["tokens"]
    )
    assert text(page) == HELLO and second["turns"][0]["lanes"][0]["answers"][0]["tokens"]
