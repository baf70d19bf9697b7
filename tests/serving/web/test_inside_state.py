"""The page Inside: its state and its links, over mistakes, models and families."""

import re

import torch
from serving.web.chat_page import needs_browser
from serving.web.test_inside import base, others, show, table  # noqa: F401  fixtures

from seq2chat.interpret.effects import effect_map
from seq2chat.interpret.patch import ablate
from seq2chat.interpret.reading import input_ids
from seq2chat.interpret.trace import trace
from seq2chat.models.folder import load_model
from seq2chat.text.tokenizers import load_tokenizer

pytestmark = needs_browser


def test_the_keyboard_keeps_its_place(page):
    show(page)
    page.get_by_role("tab", name="Flow").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        page.locator("#tabs [aria-selected=true]:focus").wait_for()
        page.locator("#panel:not([aria-busy]) > *").first.wait_for()
    page.locator("#tabs [aria-selected=true]:focus").wait_for()
    wall = show(page, panel="attention").locator("canvas.wall")
    wall.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("Layer 0, head 1.").wait_for()
    page.locator("canvas.wall:focus").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Layer 0, head 0.").wait_for()
    page.locator("canvas.wall:focus").wait_for()


def test_a_position_may_be_counted_from_the_end(page, base):  # noqa: F811
    _, _, one = base
    show(page, position=-1)
    page.get_by_text(f"number {len(one.tokens)}:").wait_for()
    for kind in ("flow", "neurons", "attention", "hand"):
        panel = show(page, position=-2, panel=kind)
        assert panel.get_by_role("alert").count() == 0, kind
        pressed = page.locator("#strip [aria-pressed=true]")
        assert (
            pressed.count() == 1
            and pressed.inner_text() == page.locator("#strip .token").nth(-2).inner_text()
        )


def test_a_trace_that_the_server_has_dropped_is_requested_again(page):
    page.expected_complaints = ["status of 404", "status of 503"]
    refusals = [
        {"status": 404, "json": {"error": {"message": "gone", "code": "trace_not_found"}}},
        {"status": 503, "json": {"error": {"message": "busy", "code": None}}},
    ]
    show(page, panel="lens")
    page.route(
        "**/tensor?*",
        lambda route: route.fulfill(**refusals.pop(0)) if refusals else route.continue_(),
    )
    page.get_by_role("tab", name="Next token").click()
    page.get_by_text("busy").wait_for()  # and not "gone"
    page.get_by_role("tab", name="Logit lens").click()
    page.locator("table.lens").wait_for()
    page.get_by_role("tab", name="Next token").click()
    page.locator(".bars li").first.wait_for()


def test_another_model_begins_anew(others):  # noqa: F811
    page, _ = others
    show(page, model="llama", text="hello there", position=5, target=100, off="0.1", panel="lens")
    page.get_by_label("Model").select_option("bert")
    page.wait_for_url("**model=bert**")
    page.locator("#panel:not([aria-busy]) table.lens").wait_for()
    assert not re.search("position|target|off", page.url)
    assert page.get_by_role("alert").count() == 0


def test_a_new_text_has_a_translation_of_its_own(others):  # noqa: F811
    page, _ = others
    show(page, model="transformer", text="hello there", translation="how are you")
    page.get_by_label("Text to trace").fill("how")
    page.get_by_role("button", name="Trace").click()
    page.wait_for_url("**text=how&**")
    assert "translation" not in page.url


def test_the_strip_belongs_to_the_panel(page):
    page.expected_complaints = ["status of 400"]
    show(page)
    assert page.locator("#strip .token").count() > 0
    page.get_by_label("Text to trace").fill(" ")
    page.get_by_role("button", name="Trace").click()
    page.get_by_role("alert").wait_for()
    assert page.locator("#strip .token").count() == 0


def test_every_neuron_of_a_long_text(others):  # noqa: F811
    page, _ = others
    panel = show(page, model="wide", text="hello there " * 100, panel="neurons")
    assert panel.get_by_role("alert").count() == 0
    assert panel.locator(".neurons li").count() == 16


def test_parts_of_a_transformer_open_their_own_attention(others):  # noqa: F811
    page, folder = others
    state = {"model": "transformer", "text": "hello there", "translation": "how are you"}
    panel = show(page, panel="flow", **state)
    assert panel.get_by_text("layer 0: cross-attention adds").count() == 1
    panel.get_by_role("button", name="layer 1: attention adds").click()
    page.get_by_text("Layer 1, head 0.").wait_for()
    kind = page.get_by_label("Kind of attention")
    assert kind.input_value() == "decoder.*.self_attn.heads"
    panel = show(page, panel="writers", **state)
    names = panel.locator(".signed li > :first-child").all_inner_texts()
    assert len(set(names)) == len(names)  # also those of biases
    panel.get_by_role("button", name="cross-attention, head 1").first.click()
    page.locator("canvas.wall").wait_for()
    assert kind.input_value() == "decoder.*.cross_attn.heads"
    # A row is the token that is predicted, as in an alignment.
    tokenizer = load_tokenizer(folder / "transformer")
    ids = tokenizer.encode("how are you")
    rows = table(page.locator("#panel"))[1:]
    names = [tokenizer.decode([token]).replace(" ", "·") for token in ids]
    assert [row[0] for row in rows] == [*names, "…"]
    panel = show(page, panel="surgery", map_of="", **state)
    panel.get_by_role("button", name="layer 0, cross-attention head 1").wait_for()


def test_effects_are_those_of_the_followed_token(others):  # noqa: F811
    page, folder = others
    model = load_model(folder / "llama")
    tokenizer = load_tokenizer(folder / "llama")
    ids = input_ids(model, tokenizer, "hello there")
    target = int(trace(model, ids).logprobs(-1).argmax())
    off = ablate("layers.0.mlp")
    assert int(trace(model, ids, interventions=[off]).logprobs(-1).argmax()) != target
    panel = show(page, model="llama", text="hello there", panel="surgery", off="0.mlp", map_of="")
    panel.get_by_text("The largest effects").wait_for()
    expected = effect_map(model, ids, target=target)
    found = torch.tensor([[float(cell) for cell in row[1:]] for row in table(panel)[1:]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-2)


def test_characters_of_several_tokens_stay_whole(page, base):  # noqa: F811
    _, tokenizer, _ = base
    text = "Hello 日本"
    rows = table(show(page, text=text, panel="tokens"))[1:]
    assert "".join(row[0] for row in rows) == text.replace(" ", "·")
    assert sum(int(row[1]) for row in rows) == len(text.encode())
    assert len(tokenizer.encode(text)) > 6


def test_a_long_text_is_read_through_a_window(others):  # noqa: F811
    page, folder = others
    state = {"model": "wide", "text": "hello there " * 100, "panel": "attention", "head": 1}
    panel = show(page, **state)
    panel.get_by_text("tokens 217 to 256 read tokens 217 to 256").wait_for()
    panel.locator("canvas.overview").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("tokens 217 to 256 read tokens 197 to 236").wait_for()
    page.locator("canvas.overview:focus").wait_for()
    model = load_model(folder / "wide")
    tokenizer = load_tokenizer(folder / "wide")
    ids = input_ids(model, tokenizer, state["text"])[-256:]
    expected = trace(model, ids)["layers.0.self_attn.heads"][1][216:256, 196:236]
    rows = table(page.locator("#panel"))[1:]
    found = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_checkpoints_are_traced_once(others):  # noqa: F811
    page, _ = others
    show(page, model="a-step-000010", text="hello there", panel="training")
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    for place, step in (("1", 30), ("0", 10), ("1", 30)):
        page.get_by_role("slider", name="Checkpoint").fill(place)
        page.get_by_text(f"Step {step}", exact=True).wait_for()
        page.locator("#panel:not([aria-busy]) .panel").wait_for()
    traces = [url for url in urls if url.endswith("/api/traces")]
    # One of each checkpoint that is looked at, and one that follows the token of the other.
    assert len(traces) <= 3 + 2 and not [url for url in urls if "/tensor" in url]


def test_only_an_rnn_has_states(others):  # noqa: F811
    page, _ = others
    for model, count in (("llama", 0), ("rnn", 1)):
        show(page, model=model, text="hello there")
        assert page.get_by_role("tab", name="States").count() == count
    panel = show(page, model="llama", text="hello there", panel="states")
    assert panel.get_by_text("Only an RNN has states").is_visible()


def test_examples_fit_the_model(page, others):  # noqa: F811
    page.get_by_text("What is the capital of France?").wait_for()
    assert page.get_by_text("Felix has a red shirt").count() == 0
    other, _ = others
    other.goto("/docs")
    for model, text in (("rnn", "A dog runs"), ("bert", "[MASK]"), ("llama", "The capital of")):
        other.goto("/docs")
        other.goto(f"/inside#model={model}")
        other.get_by_role("button", name=text).first.wait_for()
