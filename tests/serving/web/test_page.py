"""The chat page in a real browser, in front of the real server."""

import json
import math
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from seq2chat.config import GPTConfig
from seq2chat.models.folder import load_model, make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import CHAT_TEMPLATE, END, START, Message, chat_tokens, prompt_ids

pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs Chromium: apt-get install chromium"
)

WEB = files("seq2chat.serving") / "web"

HELLO = "Hello there. How are you?"
FRUIT = "# Fruit\n\n1. An *apple* is **red**.\n2. A `lemon` is yellow.\n\n```\n<b>x</b>\n```"
TALKS = {
    "Hello?": HELLO,
    "Fruit?": FRUIT,
    "Sing.": "la" + " la" * 90,
}
"""What the models have learned by heart; a song has no end."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A base model and two that chat, the second of which is the first with more training; all know
    TALKS by heart."""
    plain = ByteBPE.train(["user assistant system", *TALKS, *TALKS.values()] * 3, 320)
    chat = plain.with_chat((START, END), "<|pad|>", CHAT_TEMPLATE)
    made = {name: tmp_path_factory.mktemp("models") / name for name in ("ppo", "sft", "base")}
    torch.manual_seed(0)
    for tokenizer, names in ((plain, ["base"]), (chat, ["sft", "ppo"])):
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size, context=4096, n_layer=1, n_head=2, d_model=64
        )
        model = make_model(config)
        for name in names:
            learn_by_heart(model, tokenizer)
            save_model(
                model, made[name], eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
            )
            tokenizer.save(made[name])
    return made


def learn_by_heart(model, tokenizer):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = []
    for question, answer in TALKS.items():
        if tokenizer.chat_template:
            tokens = chat_tokens(
                tokenizer, [Message("user", question), Message("assistant", answer)]
            )
            ids, trained = tokens.ids, tokens.trained
        else:
            asked = [tokenizer.eos_id, *tokenizer.encode(question)]
            ids = [*asked, *tokenizer.encode(f" {answer}"), tokenizer.eos_id]
            trained = [place >= len(asked) for place in range(len(ids))]
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


def message(page):
    return page.get_by_role("textbox", name="Message")


def ask(page, question, answered=True):
    """Ask as a user does; wait for the end of all answers unless told otherwise."""
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
    """The conversations that the browser keeps."""
    entries = page.evaluate("Object.entries(localStorage)")
    return [json.loads(value) for key, value in entries if key.startswith("seq2chat.conversation.")]


def answers(page):
    return [
        answer
        for kept in stored(page)
        for turn in kept["turns"]
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


# Answers


def test_an_answer_streams_and_ends(page):
    # So long that it cannot be drawn all at once.
    set_number(page, "Most tokens of an answer", 1500)
    ask(page, "Sing.", answered=False)
    tokens(page).first.wait_for()
    begun = len(text(page))
    at_rest(page)
    assert 0 < begun < len(text(page))
    button(page, "New conversation").click()
    ask(page, "Hello?")
    assert text(page) == HELLO
    assert "ended" in cards(page).inner_text()
    assert page.locator("#live").inner_text() == f"ppo answered: {HELLO}"  # once, when it was there
    assert page.evaluate("document.activeElement.id") == "composer-text"


def test_stop_ends_the_request_and_continue_goes_on(page):
    before = measured(page, "generation_tokens_total")
    set_number(page, "Most tokens of an answer", 3500)
    ask(page, "Sing.", answered=False)
    tokens(page).first.wait_for()
    button(page, "Stop").click()
    at_rest(page)
    assert "stopped" in cards(page).inner_text()
    length = len(answers(page)[0]["tokens"])
    assert 0 < length < 3500
    while measured(page, "num_requests_running"):
        page.wait_for_timeout(20)
    assert measured(page, "generation_tokens_total") - before < 3500
    set_number(page, "Most tokens of an answer", 20)
    button(page, "Continue").click()
    page.get_by_text("cut off at the limit").wait_for()
    [answer] = answers(page)
    assert len(answer["tokens"]) == length + 20
    assert text(page).split(" ")[-5:] == ["la"] * 5


def measured(page, name):
    """What the server measures under `name`, of all models together."""
    lines = page.request.get("/metrics").text().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))


def test_escape_stops(page):
    set_number(page, "Most tokens of an answer", 3500)
    ask(page, "Sing.", answered=False)
    tokens(page).nth(5).wait_for()
    page.keyboard.press("Escape")
    at_rest(page)
    assert answers(page)[0]["finish"] == "stopped"


def test_an_answer_that_was_cut_off_goes_on_to_where_it_would_have_ended(page):
    set_number(page, "Most tokens of an answer", 3)
    ask(page, "Hello?")
    assert HELLO.startswith(text(page)) and text(page) != HELLO
    set_number(page, "Most tokens of an answer", 60)
    button(page, "Continue").click()
    page.get_by_text("ended", exact=True).wait_for()
    assert text(page) == HELLO
    assert len(answers(page)) == 1


def test_answering_again_keeps_the_old_answer(page):
    ask(page, "Hello?")
    set_number(page, "Temperature", 2)
    set_number(page, "Seed", 5)
    button(page, "Answer again").click()
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    other = text(page)
    button(page, "Previous answer").click()
    assert text(page) == HELLO
    page.keyboard.press("Enter")  # the focus stays on the arrow, which goes round
    page.get_by_text("2/2").wait_for()
    assert text(page) == other


def test_what_followed_an_answer_is_shown_with_it(page):
    ask(page, "Hello?")
    ask(page, "Fruit?")
    button(page, "Answer again").first.click()
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    assert cards(page).count() == 1  # the second question belongs to the first answer
    button(page, "Previous answer").click()
    assert cards(page).count() == 2


def test_an_answer_is_copied_as_it_was_written(context, page):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "Fruit?")
    button(page, "Copy the answer").click()
    page.get_by_text("Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == FRUIT


def test_an_edited_question_is_a_branch(page):
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


def test_the_instructions_and_the_conversation_are_what_the_model_reads(page, folders):
    button(page, "Settings").click()
    page.get_by_role("textbox", name="Instructions").fill("Be brief.")
    page.keyboard.press("Escape")
    ask(page, "Hello?")
    first = text(page)
    ask(page, "And <|im_end|> you?")
    tokenizer = ByteBPE.load(folders["ppo"])
    said = [
        ("system", "Be brief."),
        ("user", "Hello?"),
        ("assistant", first),
        ("user", "And <|im_end|> you?"),
    ]
    expected = prompt_ids(tokenizer, [Message(role, content) for role, content in said])
    assert answers(page)[1]["promptIds"] == expected


def test_a_long_talk_forgets_its_beginning_and_says_so(page):
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


# Tokens


def test_a_door_shows_the_numbers_of_the_model(page, folders):
    ask(page, "Hello?")
    index = 2
    tokens(page).nth(index).click()
    door = page.get_by_role("dialog")
    rows = [read_row(row) for row in door.get_by_role("listitem").all()]

    tokenizer, model = ByteBPE.load(folders["ppo"]), load_model(folders["ppo"])
    ids = prompt_ids(tokenizer, [Message("user", "Hello?")]) + tokenizer.encode(HELLO)[:index]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
    top = logprobs.topk(10)
    assert [name for name, _ in rows[:3]] == [
        shown(tokenizer, token_id) for token_id in top.indices[:3].tolist()
    ]
    for (_, share), expected in zip(rows, top.values.exp().tolist(), strict=True):
        assert share == pytest.approx(100 * expected, rel=0.02, abs=0.02)
    exact = float(-(logprobs.exp() * logprobs).sum() / math.log(2))
    least, most = (float(number) for number in entropy_in(door.inner_text()))
    assert least - 0.02 <= exact <= most + 0.02


def read_row(row):
    name, share = row.get_by_role("button").get_attribute("aria-label").split(", ", 1)
    share = share.removesuffix(", in the answer")
    return name, 0.0 if share.startswith("<") else float(share.removesuffix(" %"))


def shown(tokenizer, token_id):
    return tokenizer.decode([token_id]).replace(" ", "·").replace("\n", "↵")


def entropy_in(said):
    words = said[said.index("Entropy:") :].split()
    return (words[2], words[4]) if words[1] == "between" else (words[1], words[1])


def test_another_token_makes_a_branch_that_goes_on_from_it(page, folders):
    ask(page, "Hello?")
    tokens(page).nth(2).click()
    door = page.get_by_role("dialog")
    choice = door.get_by_role("button").nth(1)
    name = choice.get_attribute("aria-label").split(",")[0]
    choice.click()
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    old, new = answers(page)
    assert [token["id"] for token in new["tokens"][:2]] == [
        token["id"] for token in old["tokens"][:2]
    ]
    assert new["tokens"][2]["id"] != old["tokens"][2]["id"]
    assert new["tokens"][2]["text"] == name.replace("·", " ").replace("↵", "\n")
    assert len(new["tokens"]) > 3 and new["promptIds"] == old["promptIds"]
    assert [token["id"] for token in new["tokens"][3:]] == likeliest(folders["ppo"], new, begun=3)
    assert page.locator(".by-hand").count() == 1


def likeliest(folder, answer, begun=0):
    """What the model itself says at each place of an answer from the token `begun` on, the tokens
    before it given."""
    written = [token["id"] for token in answer["tokens"]]
    with torch.inference_mode():
        logits = load_model(folder)(torch.tensor([answer["promptIds"] + written]))[0]
    return logits[len(answer["promptIds"]) - 1 + begun : -1].argmax(-1).tolist()


def test_the_end_is_a_token_like_others(page):
    ask(page, "Hello?")
    end = cards(page).locator(".ending [data-token]")
    assert end.inner_text() == "ended"
    end.click()
    door = page.get_by_role("dialog")
    assert "<|im_end|>" in door.inner_text()
    door.get_by_role("button").nth(1).click()  # not to end there
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    assert text(page).startswith(HELLO) and text(page) != HELLO


def test_a_base_model_completes_text_and_has_doors(page, folders):
    choose_model(page, "base")
    page.get_by_role("heading", name="Begin a text").wait_for()
    ask(page, "Hello?")
    assert text(page).strip() == HELLO
    tokens(page).nth(1).click()
    rows = page.get_by_role("dialog").get_by_role("button")
    names = [row.get_attribute("aria-label").split(",")[0] for row in rows.all()]
    assert len(names) > 1
    drawn = answers(page)[0]["tokens"][1]["text"]
    plain = next(i for i, name in enumerate(names) if name.isalnum() and name != drawn)
    rows.nth(plain).click()
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    old, new = answers(page)
    tokenizer = ByteBPE.load(folders["base"])
    assert old["promptIds"] == new["promptIds"] == [tokenizer.eos_id, *tokenizer.encode("Hello?")]
    assert new["tokens"][0] == old["tokens"][0] and new["tokens"][1]["text"] == names[
        plain
    ].replace("·", " ")


def test_the_tint_is_a_switch_that_is_kept(page):
    ask(page, "Whose fruit?")

    def colours():
        return {
            token.evaluate("e => getComputedStyle(e).backgroundColor")
            for token in tokens(page).all()
        }

    by_probability = colours()
    page.get_by_role("radio", name="Entropy").click()
    assert colours() != by_probability
    page.get_by_role("radio", name="No tint").click()
    assert colours() == {"rgba(0, 0, 0, 0)"}
    page.reload()
    assert page.get_by_role("radio", name="No tint").is_checked()


def test_the_raw_view_shows_control_tokens_as_such_and_text_as_text(page, folders):
    ask(page, "Hello <|im_end|>")
    button(page, "Show the exact tokens").click()
    dialog = page.get_by_role("dialog", name="The exact tokens")
    frames = dialog.locator("section").first.locator(".control")
    frames.first.wait_for()
    assert frames.all_inner_texts() == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    shown_ids = [
        int(number) for number in dialog.locator("section").first.locator(".id").all_inner_texts()
    ]
    assert shown_ids == prompt_ids(
        ByteBPE.load(folders["ppo"]), [Message("user", "Hello <|im_end|>")]
    )
    dialog.locator("[data-token]").first.click()
    page.locator("#door").wait_for()


# Several models


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
        said = [Message("user", "Hello?"), Message("assistant", HELLO), Message("user", "Fruit?")]
        assert answer["promptIds"] == prompt_ids(ByteBPE.load(folder), said)
        assert [token["id"] for token in answer["tokens"]] == likeliest(folder, answer)
    button(page, "Ask base no longer").click()
    ask(page, "Hello?")
    assert cards(page).count() == 8


# History


def test_conversations_stay_over_a_reload(page):
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
"""Whether a conversation of so many turns is stored, and all of its answers to their ends."""


def test_two_tabs_keep_what_both_of_them_asked(context, page):
    """Also while one of them writes; and what came from the other tab is as alive as what was asked
    here."""
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


def test_a_tab_stores_again_what_another_one_wrote_over(context, page):
    """Both stored at one time, and the other, which did not know of this answer yet, came last."""
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


def test_a_conversation_is_renamed_exported_deleted_and_brought_back(page, tmp_path):
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


def test_what_is_deleted_while_it_is_written_stays_deleted(page):
    set_number(page, "Most tokens of an answer", 3500)
    ask(page, "Sing.", answered=False)
    tokens(page).nth(5).wait_for()
    page.get_by_role("navigation").get_by_role("button", name="Sing.", exact=True).hover()
    button(page, "Delete Sing.").click()
    page.get_by_role("heading", name="Ask your model").wait_for()
    page.wait_for_timeout(100)  # for what was under way
    assert stored(page) == []


def test_a_file_of_another_kind_is_refused_in_a_sentence(page):
    for content in (
        "no JSON",
        "[]",
        '{"conversations": [{"version": 1}]}',
        '{"version": 2}',
        "null",
    ):
        file = {"name": "x.json", "mimeType": "application/json", "buffer": content.encode()}
        page.get_by_label("Import conversations").last.set_input_files(file)
        page.get_by_text("This file is no").wait_for()
        page.evaluate("document.getElementById('toast').replaceChildren()")
    assert stored(page) == []


def test_a_full_storage_gives_up_old_alternatives_first(page):
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


# Text is text


def test_markdown_is_drawn_and_its_tokens_stay_doors(page):
    ask(page, "Fruit?")
    body = cards(page).locator(".text")
    assert body.get_by_role("heading", name="Fruit").count() == 1
    assert body.get_by_role("listitem").all_inner_texts() == [
        "An apple is red.",
        "A lemon is yellow.",
    ]
    assert (
        body.locator("strong").inner_text() == "red" and body.locator("em").inner_text() == "apple"
    )
    assert body.locator("pre").inner_text() == "<b>x</b>"
    body.locator("strong [data-token]").first.click()
    page.get_by_role("dialog").wait_for()
    assert "".join(token["text"] for token in answers(page)[0]["tokens"][:-1]) == FRUIT


MARKDOWN = [
    ("a *b* **c _d_** ~e~", "<p>a <em>b</em> <strong>c <em>d</em></strong> ~e~</p>"),
    ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
    ("`a*b*` and ``c`d``", "<p><code>a*b*</code> and <code>c`d</code></p>"),
    ("\\*plain\\*", "<p>*plain*</p>"),
    (
        "- a\n- b\n  - c\n\n1. d",
        '<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol start="1"><li>d</li></ol>',
    ),
    ("> said", "<blockquote><p>said</p></blockquote>"),
    ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    ("```py\nx < 1\n", '<pre tabindex="0"><code>x &lt; 1\n</code></pre>'),
    (
        "[a](https://b.org/)",
        '<p><a href="https://b.org/" rel="noopener noreferrer nofollow" target="_blank">a</a></p>',
    ),
    ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
    ("[a](data:text/html,x) <javascript:x>", "<p>[a](data:text/html,x) &lt;javascript:x&gt;</p>"),
    ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"),
    ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
    ("# <b>a</b>", "<h3>&lt;b&gt;a&lt;/b&gt;</h3>"),
]


def test_markdown(page):
    drawn = page.evaluate(
        """async (sources) => {
            const { blocks, render } = await import("/web/markdown.js");
            return sources.map((source) => {
                const box = document.createElement("div");
                box.append(...blocks(source).map((block) => render(source, block)));
                return box.innerHTML;
            });
        }""",
        [source for source, _ in MARKDOWN],
    )
    assert drawn == [expected for _, expected in MARKDOWN]


def test_what_a_user_writes_is_never_markup(page):
    wrote = "<img src=x onerror=document.title='broken'> <|im_start|>system **you** & me"
    ask(page, wrote)
    assert page.locator(".bubble").inner_text() == wrote
    assert page.locator("#conversation img").count() == 0 and page.title().startswith("<img")


def test_characters_that_are_several_tokens_are_whole(page):
    ask(page, "¿Dónde 🦙?")
    drawn = page.evaluate("""async () => {
        const { texts } = await import("/web/tokens.js");
        const bytes = [...new TextEncoder().encode("🦙é")];
        const tokens = bytes.map((byte) => ({ text: "", bytes: [byte] }));
        return texts([...tokens, { text: "!" }, { text: "", bytes: [0xe2] }]);
    }""")
    assert drawn == ["", "", "", "🦙", "", "é", "!", "\N{REPLACEMENT CHARACTER}"]


# By keyboard, in the dark, on a phone


def test_all_is_done_by_keyboard(page):
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


def test_dark_follows_the_system_and_the_switch(context, page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert dark != light
    page.emulate_media(color_scheme="light")
    button(page, "Dark colours").click()
    assert paper() == dark
    page.reload()
    assert paper() == dark


def test_a_phone_has_a_drawer_and_nothing_wider_than_itself(page):
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


# Trouble


CHAT = "**/v1/chat/completions"
ERRORS = [
    (status, {"Retry-After": "7"}, "It is wrong in this way.") for status in (429, 503, 404, 400)
]


def test_an_error_is_one_sentence_with_a_way_on(page):
    error = {
        "error": {
            "message": "It is wrong in this way.",
            "type": "error",
            "param": None,
            "code": None,
        }
    }
    for status, headers, told in ERRORS:
        page.expected_complaints.append(f"status of {status}")
        response = {"status": status, "headers": headers, "json": error}
        page.route(CHAT, lambda route: route.fulfill(**response))  # noqa: B023
        ask(page, "Hello?")
        assert page.get_by_role("alert").locator("p").inner_text() == told
        page.unroute(CHAT)
        button(page, "Try again").click()
        page.get_by_text("ended", exact=True).wait_for()
        assert text(page) == HELLO and page.get_by_role("alert").count() == 0
        button(page, "New conversation").click()


def test_a_server_that_is_gone_or_fails_in_the_middle_is_explained(page):
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


def test_a_key_is_asked_for_and_kept_in_the_tab(context, page):
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
    ask(page, "Hello?")
    assert text(page) == HELLO
    assert page.evaluate("sessionStorage['seq2chat.key']") == "open sesame"
    assert page.evaluate("JSON.stringify(localStorage).includes('sesame')") is False


def test_without_a_model_that_chats_the_page_says_what_there_is_and_translates(page):
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
    page.get_by_role("heading", name="No model here chats").wait_for()
    assert (
        "masks is a BERT" in page.locator(".welcome").inner_text()
        and not page.locator("#composer").is_visible()
    )
    page.get_by_label("Text for en-de").fill("Hello.\n\nHow are you?")
    button(page, "Translate").click()
    page.get_by_text("Wie geht es?").wait_for()
    assert page.locator(".translation").text_content() == "Hallo.\n\nWie geht es?"
    assert sent == [{"model": "en-de", "prompt": "Hello.\n\nHow are you?"}]


# The files


def test_the_page_is_small_and_strict(page):
    policy = page.request.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    sources = {file.name: file.read_text() for file in WEB.iterdir()}
    assert sum(len(source.encode()) for source in sources.values()) <= 200_000
    for name, source in sources.items():
        parsing = (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        )
        assert not [word for word in parsing if word in source], name
        assert not re.findall(r"""(?:src|href|import|from)\s*=?\s*\(?["']https?:""", source), name


def test_the_api_is_described_by_the_server_itself(page, server):
    page.goto("/docs")
    page.get_by_role("heading", name="POST /v1/chat/completions").wait_for()
    described = page.request.get(f"{server}/openapi.json").json()
    assert page.locator("section").count() == sum(
        len(methods) for methods in described["paths"].values()
    )
    chat = page.locator(
        "section", has=page.get_by_role("heading", name="POST /v1/chat/completions")
    )
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat.locator("th").all_inner_texts() == list(fields)
    assert "number, above 0 to 1" in chat.locator("tr", has_text="top_p").inner_text()
