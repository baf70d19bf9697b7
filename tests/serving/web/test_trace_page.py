"""The page of `seq2chat trace --out` in a browser without a network: its numbers are Python's."""

import math
import re

import pytest
import torch
from cli.test_attention_cli import folders as all_folders  # noqa: F401  a fixture

from seq2chat.interpret.effects import effect_map, head_sites
from seq2chat.interpret.page import trace_page
from seq2chat.interpret.reading import input_texts
from seq2chat.interpret.summary import numbers, summary
from seq2chat.interpret.surgery import ABLATED
from seq2chat.interpret.trace import trace
from seq2chat.training.checkpoint import load_checkpoint


@pytest.fixture
def opened(browser, all_folders, tmp_path):  # noqa: F811
    """Open the page of a family's model, and return it with the trace and its summary."""
    contexts = []
    complaints = []
    urls = []

    def begin(name, color_scheme="light"):
        model, tokenizer = load_checkpoint(all_folders[name])
        texts = input_texts(model, tokenizer, "the red cat", "das" if name != "gpt" else None)
        one = trace(model, *texts)
        record = summary(one, tokenizer)
        sites = head_sites(model)
        if sites:
            values = numbers(effect_map(model, *texts, target=record["target"]["id"]))
            record["effects"] = {"question": ABLATED, "sites": sites, "values": values}
        file = tmp_path / f"{name}.html"
        trace_page(one, tokenizer, record).save(file)
        context = browser.new_context(offline=True, color_scheme=color_scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.goto(file.as_uri())
        page.locator("#head-name:not(:empty)").wait_for()
        return page, one, record

    yield begin
    for context in contexts:
        context.close()
    assert complaints == []
    assert all(url.startswith(("file:", "blob:")) for url in urls)


@pytest.mark.parametrize("name", ["gpt", "transformer", "additive"])
def test_every_weight_that_is_drawn(opened, name):
    page, one, _ = opened(name)
    maps = [group.name for group in one.groups if "query" in group.axes]
    assert page.evaluate("data.maps.map(group => group.site)") == maps
    for index, site in enumerate(maps):
        drawn = page.evaluate("index => Array.from(data.maps[index].values)", index)
        weights = one.stack(site)[0].flatten()
        torch.testing.assert_close(torch.tensor(drawn) / 65535, weights, rtol=0, atol=1e-5)


def test_a_head_is_chosen_and_read(opened):
    page, one, _ = opened("gpt")
    page.locator("#wall").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator("#head-name").text_content() == "self, layer 1, head 1"
    box = page.locator("#head").bounding_box()
    cell = page.evaluate("headGeometry(data.maps[state.group])")
    at = cell["margin"] + 2.5 * cell["cell"], cell["margin"] + 3.5 * cell["cell"]
    page.mouse.move(box["x"] + at[0], box["y"] + at[1])
    weight = float(one["layers.1.self_attn.heads"][1, 3, 2])
    assert page.locator("#cell").text_content().endswith(f"(2): {weight:.4f}")
    color = page.evaluate(
        "([x, y]) => Array.from($('#head').getContext('2d').getImageData(x, y, 1, 1).data)",
        list(at),
    )
    white, accent = (255, 255, 255), (23, 105, 92)
    share = math.sqrt(weight)
    expected = [w + share * (a - w) for w, a in zip(white, accent, strict=True)]
    assert color[:3] == pytest.approx(expected, abs=1.5)


def test_every_number_of_the_tables(opened):
    page, one, record = opened("gpt", "dark")
    probabilities = page.locator("#prediction td:last-child").all_text_contents()
    best = one.logprobs(-1).exp().topk(10).values.tolist()
    shown = [float(text.rstrip("%")) / 100 for text in probabilities]
    assert shown == pytest.approx(best, abs=6e-4)
    parts = page.locator("#attribution td:last-child").all_text_contents()
    values = [float(text.replace("−", "-")) for text in parts]
    assert values == pytest.approx([part["logit"] for part in record["attribution"]], abs=6e-4)
    titles = page.locator("#effects td").evaluate_all("cells => cells.map(cell => cell.title)")
    shown = [float(re.search(r": (.*)", title)[1]) for title in titles]
    values = [value for row in record["effects"]["values"] for value in row]
    assert shown == pytest.approx(values)
    rows = page.locator("#lens tbody tr")
    assert rows.count() == 5  # the last part first
    last = rows.nth(0).locator("td").evaluate_all("cells => cells.map(cell => cell.title)")
    percent = float(re.search(r": (.*)%", last[-1])[1])
    assert percent / 100 == pytest.approx(best[0], abs=6e-4)
