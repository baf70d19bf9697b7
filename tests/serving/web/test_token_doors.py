"""The doors of tokens, the tint and the raw view."""

import math

import pytest
import torch
from serving.web.chat_page import (
    HELLO,
    answers,
    ask,
    at_rest,
    button,
    cards,
    choose_model,
    most_likely_ids,
    needs_browser,
    text,
    tokens,
)

from seq2chat.models.folder import load_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import Message, prompt_ids

pytestmark = needs_browser


def test_door_shows_the_models_probabilities(page, folders):
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


def entropy_in(text):
    words = text[text.index("Entropy:") :].split()
    return (words[2], words[4]) if words[1] == "between" else (words[1], words[1])


def test_another_token_makes_a_branch(page, folders):
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
    assert [token["id"] for token in new["tokens"][3:]] == most_likely_ids(
        folders["ppo"], new, begun=3
    )
    assert page.locator(".by-hand").count() == 1


def test_end_token_has_a_door(page):
    ask(page, "Hello?")
    end = cards(page).locator(".ending [data-token]")
    assert end.inner_text() == "ended"
    end.click()
    door = page.get_by_role("dialog")
    assert "<|im_end|>" in door.inner_text()
    door.get_by_role("button").nth(1).click()  # continue instead of ending
    page.get_by_text("2/2").wait_for()
    at_rest(page)
    assert text(page).startswith(HELLO) and text(page) != HELLO


def test_base_model_has_doors(page, folders):
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


def test_tint_is_stored(page):
    ask(page, "Whose fruit?")

    def colors():
        return {
            token.evaluate("e => getComputedStyle(e).backgroundColor")
            for token in tokens(page).all()
        }

    by_probability = colors()
    page.get_by_role("radio", name="Entropy").click()
    assert colors() != by_probability
    page.get_by_role("radio", name="No tint").click()
    assert colors() == {"rgba(0, 0, 0, 0)"}
    page.reload()
    assert page.get_by_role("radio", name="No tint").is_checked()


def test_raw_view_frames_control_tokens_only(page, folders):
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
