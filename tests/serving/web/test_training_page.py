"""The page Training: its numbers are those of the run folder, also during training."""

import json
import shutil
from urllib.parse import urlencode

import pytest
from serving.trained_runs import PAIR, SENTENCE, train_gpt, train_rnn
from serving.web.chat_page import button, needs_browser
from serving.web.conftest import serving

from seq2chat.interpret.probe import head_scores, token_losses
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.gradients import layer_gradients
from seq2chat.training.run_folder import RunFolder

pytestmark = needs_browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A GPT with checkpoints, a copy of it that continues without them, and an RNN."""
    folder = tmp_path_factory.mktemp("watched") / "runs"
    folder.mkdir()
    gpt = train_gpt(folder / "gpt")
    live = RunFolder(folder / "live")
    live.create()
    for name in ("config.toml", "metrics.jsonl"):
        shutil.copy(gpt.folder / name, live.folder)
    return {"gpt": gpt, "live": live, "rnn": train_rnn(folder / "rnn")}


@pytest.fixture(scope="module")
def page(browser, runs, tmp_path_factory):
    """A page of `seq2chat watch`. It must log no errors and make no requests to other hosts."""
    log = tmp_path_factory.mktemp("log") / "log.txt"
    folders = [run.folder for run in runs.values()]
    with serving(folders, log, command="watch") as address:
        page = browser.new_page(base_url=address, viewport={"width": 1280, "height": 900})
        complaints = []
        urls = []
        page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else 0)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        yield page
        assert complaints == [], log.read_text()
        assert [url for url in urls if not url.startswith((address, f"blob:{address}"))] == []
        page.close()


def show(page, **state):
    page.goto("about:blank")  # a change of the hash alone would not load the page
    page.goto(f"/training#{urlencode(state)}")
    page.locator("#panel:not([aria-busy]) .panel").wait_for()
    return page.locator("#panel")


def table(panel):
    button(panel, "Show as a table").click()
    rows = panel.locator(".as-table tr")
    return [row.locator("th, td").all_inner_texts() for row in rows.all()]


def test_the_page_without_models_is_the_training(page):
    page.goto("/")
    page.get_by_role("heading", name="Curves").wait_for()
    assert page.get_by_role("link", name="Chat").count() == 0
    names = page.locator("#runs label").all_inner_texts()
    assert [name.split()[0] for name in names] == ["gpt", "live", "rnn"]


def test_every_point_is_a_line_of_the_metrics(page, runs):
    rows = table(show(page, runs="gpt"))
    loss = rows[0].index("loss")
    found = {int(row[1]): float(row[loss]) for row in rows[1:] if row[loss]}
    metrics = runs["gpt"].metrics()
    expected = {m["step"]: m["loss"] for m in metrics if "loss" in m}
    assert found == pytest.approx(expected, rel=1e-3)
    validation = rows[0].index("val loss")
    found = [float(row[validation]) for row in rows[1:] if row[validation]]
    assert found == pytest.approx([m["val_loss"] for m in metrics if "val_loss" in m], rel=1e-3)
    chart = page.get_by_role("img", name="Loss by step")
    chart.focus()
    page.keyboard.press("End")
    told = page.locator(".chart-box").first.locator(".told").inner_text()
    assert told.startswith(f"step {max(expected)}: training ")


def test_a_run_that_goes_on_is_drawn_live(page, runs):
    show(page, runs="gpt,live")
    page.get_by_text("live: step 12").wait_for()
    runs["live"].record({"step": 13, "tokens": 99, "loss": 0.125, "elapsed_seconds": 9.0})
    page.get_by_text("live: step 13, loss 0.125").wait_for()
    chart = page.get_by_role("img", name="Loss by step")
    assert "live training 0.125" in chart.get_attribute("aria-label")


def test_a_run_without_checkpoints_says_so(page):
    for view in ("probe", "heads", "gradients"):
        panel = show(page, runs="live", view=view)
        panel.get_by_text("live has no checkpoint yet").wait_for()
    panel = show(page, runs="live", view="samples")
    panel.get_by_text("No run has written a sample yet").wait_for()


def test_a_sentence_is_measured_at_every_checkpoint(page, runs):
    panel = show(page, runs="gpt", view="probe", text=SENTENCE)
    checkpoints = runs["gpt"].list_checkpoints()
    panel.locator(".losses tbody tr").nth(len(checkpoints) - 1).wait_for()
    rows = table(panel)[1:]
    for row, folder in zip(rows, checkpoints, strict=True):
        losses = [loss for _, loss in token_losses(*load_checkpoint(folder), SENTENCE)]
        assert [float(cell) for cell in row[2:-1]] == pytest.approx(losses[1:], rel=1e-3)
        mean = sum(losses[1:]) / (len(losses) - 1)
        assert float(row[-1]) == pytest.approx(mean, rel=1e-3)
    panel = show(page, runs="rnn", view="probe", text=PAIR[0], translation=PAIR[1])
    panel.locator(".losses tbody tr").nth(2).wait_for()
    last = load_checkpoint(runs["rnn"].list_checkpoints()[-1])
    expected = [loss for _, loss in token_losses(*last, *PAIR)]
    cells = table(panel)[-1][1:-1]
    assert [float(cell) for cell in cells] == pytest.approx(expected, rel=1e-3)


def test_heads_and_gradients_are_the_checkpoints(page, runs):
    panel = show(page, runs="gpt", view="heads")
    panel.locator(".legend", has_text="layer 1").wait_for()
    checkpoints = runs["gpt"].list_checkpoints()
    page.locator("#panel [aria-busy]").wait_for(state="detached")
    rows = table(panel)
    assert len(rows[0]) == 1 + len(checkpoints)
    for column, folder in enumerate(checkpoints, 1):
        model, tokenizer = load_checkpoint(folder)
        scores = head_scores(model, tokenizer.vocab_size)
        expected = [*scores.previous.flatten().tolist(), *scores.induction.flatten().tolist()]
        found = [float(row[column]) for row in rows[1:]]
        assert found == pytest.approx(expected, rel=1e-3)
    panel = show(page, runs="gpt", view="gradients")
    panel.locator(".legend", has_text="layers.1").wait_for()
    page.locator("#panel [aria-busy]").wait_for(state="detached")
    norms = layer_gradients(checkpoints[-1])
    found = {row[0].split(": ")[1]: float(row[-1]) for row in table(panel)[1:]}
    assert found == pytest.approx(norms, rel=1e-3)


def test_samples_move_with_the_slider(page, runs):
    panel = show(page, runs="gpt", view="samples")
    newest = panel.locator("pre")
    newest.wait_for()
    assert newest.inner_text().strip() == runs["gpt"].newest_sample().strip()
    page.get_by_role("slider").fill("0")
    page.wait_for_url("**step=6**")
    text = (runs["gpt"].folder / "samples" / "step-000006.txt").read_text()
    page.locator("figcaption", has_text="step 6").wait_for()
    assert page.locator("pre").inner_text().strip() == text.strip()


def test_numbers_are_copied_and_the_picture_is_saved(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel = show(page, runs="gpt")
    button(panel, "Copy the numbers").click()
    page.get_by_text("Copied.").wait_for()
    [run] = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert run["name"] == "gpt" and len(run["train"]["metrics"]["loss"]) == 12
    with page.expect_download() as download:
        button(panel, "Save the picture").click()
    assert download.value.suggested_filename == "curves.png"
