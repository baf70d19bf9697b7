"""The page Inside: every number that it shows is Python's on the same weights."""

import json
import re
import shutil
from urllib.parse import urlencode

import pytest
import torch
from serving.web.chat_page import HELLO, answers, ask, button, needs_browser, tokens
from serving.web.conftest import serving

from seq2chat.config import BERTConfig, GPTConfig, Seq2SeqConfig, TransformerConfig
from seq2chat.interpret.attribution import attribution
from seq2chat.interpret.effects import delta_logprobs, effect_map
from seq2chat.interpret.lens import lens
from seq2chat.interpret.patch import ablate
from seq2chat.interpret.reading import input_ids, with_target
from seq2chat.interpret.trace import trace
from seq2chat.models.folder import load_model, make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.tokenizers import load_tokenizer
from seq2chat.text.wordpiece import WordPiece

pytestmark = needs_browser

TEXT = "Hello there"


@pytest.fixture(scope="module")
def base(folders):
    """The served base model, its tokenizer, and the ids and trace of TEXT."""
    model = load_model(folders["base"])
    tokenizer = load_tokenizer(folders["base"])
    ids = [*tokenizer.start_ids, *tokenizer.encode(TEXT)]
    return model, tokenizer, trace(model, ids)


def show(page, **state):
    """Open a panel by its address, and return it."""
    state = {"model": "base", "text": TEXT} | state
    page.goto("/docs")  # a change of the hash alone would not load the page
    page.goto(f"/inside#{urlencode(state)}")
    page.locator("#panel:not([aria-busy]) > *").first.wait_for()
    return page.locator("#panel")


@pytest.fixture(scope="module")
def others(browser, tmp_path_factory):
    """A page of a server of an RNN, a Transformer, a BERT and a Llama, and its address."""
    folder = tmp_path_factory.mktemp("others")
    tokenizer = ByteBPE.train(["Hello there, how are you today?"] * 9, 300)
    words = WordPiece.train(["hello there how are you today"] * 9, 60)
    gpt = {"n_layer": 2, "n_head": 2, "d_model": 32, "context": 40}
    size = tokenizer.vocab_size
    kinds = {
        "rnn": (Seq2SeqConfig(vocab_size=size, d_embed=16, d_model=24), tokenizer),
        "transformer": (TransformerConfig(vocab_size=size, **gpt), tokenizer),
        "bert": (BERTConfig(vocab_size=words.vocab_size, **gpt), words),
        "llama": (GPTConfig("llama", vocab_size=size, n_kv_head=1, **gpt), tokenizer),
        "wide": (
            GPTConfig(vocab_size=size, n_layer=1, n_head=2, d_model=256, context=256),
            tokenizer,
        ),
    }
    torch.manual_seed(0)
    for name, (config, text) in kinds.items():
        model = make_model(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        save_model(model, folder / name, eos_token_id=text.eos_id)
        text.save(folder / name)
    steps = [folder / "runs/a/checkpoints" / name for name in ("step-000010", "step-000030")]
    for step in steps:
        shutil.copytree(folder / "llama", step)
    model = load_model(folder / "llama")
    torch.nn.init.normal_(model.layers[0].self_attn.q_proj.weight)
    save_model(model, steps[1])
    with serving([*(folder / name for name in kinds), *steps], folder / "log.txt") as address:
        page = browser.new_page(base_url=address)
        complaints = []
        page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else 0)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page, folder
        assert complaints == [], (folder / "log.txt").read_text()
        page.close()


PANELS = ("flow", "tokens", "attention", "lens", "next", "writers", "surgery", "neurons", "hand")


@pytest.mark.parametrize("name", ["rnn", "transformer", "bert", "llama"])
def test_every_family_opens_in_every_panel(others, name):
    page, _ = others
    for kind in (*PANELS, "positions", "states"):
        panel = show(page, model=name, text="hello there", panel=kind)
        panel.locator(".panel, .help").first.wait_for()
        assert panel.get_by_role("alert").count() == 0, kind


def test_states_and_alignment_of_an_rnn_are_recorded_ones(others):
    page, folder = others
    model = load_model(folder / "rnn")
    tokenizer = load_tokenizer(folder / "rnn")
    state = {"model": "rnn", "text": "hello there", "translation": "how are you"}
    rows = table(show(page, panel="states", site="decoder.cells.*", **state))[1:]
    ids = with_target(
        model, tokenizer, input_ids(model, tokenizer, state["text"]), state["translation"]
    )
    one = trace(model, *ids)
    norms = one["decoder.cells.0"].norm(dim=1).tolist()
    assert [float(cells[1]) for cells in rows] == pytest.approx(norms, rel=1e-3)
    rows = table(show(page, panel="attention", map="decoder.attention", **state))[1:]
    found = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
    torch.testing.assert_close(found, one["decoder.attention"][0], atol=1e-4, rtol=1e-3)


def test_positions_are_the_models(others):
    page, folder = others
    model = load_model(folder / "bert")
    rows = table(show(page, panel="positions", model="bert", text="hello there"))[1:]
    vectors = model.embed_positions.weight[: len(rows)]
    expected = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    found = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_slider_moves_over_the_checkpoints_of_a_run(others):
    page, folder = others
    show(page, model="a-step-000010", text="hello there", panel="training")
    page.get_by_role("slider", name="Checkpoint").fill("1")
    page.get_by_text("Step 30", exact=True).wait_for()
    assert "a-step-000030" in page.url
    page.locator("#panel:not([aria-busy]) .panel").wait_for()
    rows = table(page.locator("#panel"))
    assert rows[0][1:] == [
        f"{kind}, step {n}" for n in (10, 30) for kind in ("previous", "induction")
    ]
    for column, step in ((1, "step-000010"), (3, "step-000030")):
        model = load_model(folder / "runs/a/checkpoints" / step)
        tokens = repeated(load_tokenizer(folder / "llama").vocab_size, model.context // 2)
        one = trace(model, tokens)
        weights = torch.cat([one[f"layers.{i}.self_attn.heads"] for i in range(2)])
        half = len(tokens) // 2
        previous = weights.diagonal(-1, 1, 2).mean(-1)
        induction = weights.diagonal(1 - half, 1, 2)[:, 1:].mean(-1)
        found = torch.tensor(
            [[float(cell) for cell in row[column : column + 2]] for row in rows[1:]]
        )
        torch.testing.assert_close(
            found, torch.stack([previous, induction], 1), atol=1e-4, rtol=1e-3
        )


def repeated(vocab_size, length):
    """The page's random tokens, twice (Marsaglia 2003, xorshift)."""
    x = 2463534242
    once = []
    for _ in range(length):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        once.append(x % vocab_size)
    return once * 2


def table(panel):
    """Return the rows of the panel's table."""
    button(panel, "Show as a table").click()
    rows = panel.locator(".as-table tr")
    return [row.locator("th, td").all_inner_texts() for row in rows.all()]


def share(text):
    return 0.0 if text.startswith("<") else float(text.removesuffix(" %")) / 100


def test_a_token_of_a_chat_opens_the_pass_that_wrote_it(page, folders):
    ask(page, "Hello?")
    tokens(page).nth(2).click()
    page.get_by_role("link", name="Look inside").click()
    page.locator("#panel .panel").wait_for()
    [answer] = answers(page)
    written = answer["tokens"][2]
    assert page.get_by_text(f"continues with “{written['text'].replace(' ', '·')}”").is_visible()
    page.get_by_role("tab", name="Logit lens").click()
    last = page.locator("table.lens tbody tr").last
    last.wait_for()
    assert share(last.locator(".share").first.inner_text()) == pytest.approx(
        torch.tensor(written["logprob"]).exp().item(), abs=1e-4
    )
    assert HELLO.startswith("Hello")


def test_attention_cells_are_the_weights(page, base):
    _, _, one = base
    for head in (0, 1):
        panel = show(page, panel="attention", layer=0, head=head)
        rows = table(panel)[1:]
        expected = one["layers.0.self_attn.heads"][head]
        found = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    canvas = panel.locator("canvas.matrix")
    box = canvas.bounding_box()
    n = len(one.tokens)
    page.mouse.move(box["x"] + box["width"] / n / 2, box["y"] + box["height"] * (1 - 0.5 / n))
    weight = float(panel.locator(".told").inner_text().split("weight ")[1].rstrip("."))
    assert weight == pytest.approx(expected[-1, 0].item(), rel=1e-3, abs=1e-6)


def test_the_lens_and_the_parts_are_pythons(page, base):
    _, tokenizer, one = base
    target = int(one.logprobs(-1).argmax())
    expected = lens(one, top=5, target=target)
    panel = show(page, panel="lens")
    rows = panel.locator("table.lens tbody tr").all()
    for row, ids, logprob in zip(rows, expected.ids[:, 0], expected.target[:, 0], strict=True):
        cells = row.locator(".lens-cell").all_inner_texts()
        names = [tokenizer.decode([token]) for token in ids.tolist()]
        assert cells == [name.replace(" ", "·").replace("\n", "↵") for name in names]
        shown = share(row.locator(".share").first.inner_text())
        assert shown == pytest.approx(logprob.exp().item(), abs=1e-3)
    parts = [float(cells[1]) for cells in table(show(page, panel="writers"))[1:]]
    logits = sorted(part.logit for part in attribution(one, target, -1))
    assert sum(parts) == pytest.approx(sum(logits), abs=1e-2)
    assert max(parts) == pytest.approx(logits[-1], rel=1e-3)


def test_the_distribution_is_exact_and_follows_the_sliders(page, base):
    _, _, one = base
    panel = show(page, panel="next")
    probabilities = one.logprobs(-1).exp()
    panel.locator(".bars li").first.wait_for()
    for row in panel.locator(".bars li").all()[:8]:
        expected = probabilities[int(row.get_attribute("data-token-id"))].item()
        assert share(row.locator(".share").first.inner_text()) == pytest.approx(expected, abs=1e-3)
    panel.get_by_role("slider", name="Top-k").fill("2")
    assert panel.locator(".bars li:not(.cut)").count() == 2
    assert panel.get_by_text(f"2 of {len(probabilities)} tokens remain").is_visible()
    top = probabilities.topk(2).values
    first = panel.locator(".bars .share").first.inner_text()
    assert share(first) == pytest.approx((top[0] / top.sum()).item(), abs=1e-3)
    panel.get_by_role("slider", name="Temperature").fill("0")
    assert panel.locator(".bars li:not(.cut)").count() == 1


def test_surgery_changes_the_prediction_as_in_python(page, base):
    model, _, one = base
    target = int(one.logprobs(-1).argmax())
    panel = show(page, panel="surgery")
    button(panel, "layer 0, head 1").click()
    panel.locator(".effects").wait_for()
    head = ablate("layers.0.self_attn.heads.context", head=1)
    changed = trace(model, one.tokens, interventions=[head])
    expected = delta_logprobs(one, changed, [target])[0].item()
    delta = panel.locator(".effects tbody tr").first.locator("td").last.inner_text()
    assert float(delta.removesuffix(" nats")) == pytest.approx(expected, rel=1e-2, abs=1e-4)
    button(panel, "Start again").click()
    button(panel, "Switch each head off in turn").click()
    panel.get_by_text("The largest effects").wait_for()
    effects = effect_map(model, one.tokens, target=target)
    found = [float(cell) for cell in table(panel)[1][1:]]
    assert found == pytest.approx(effects[0].tolist(), rel=1e-2, abs=1e-4)


def test_tokens_are_merged_from_bytes(page, base):
    _, tokenizer, _ = base
    rows = table(show(page, panel="tokens"))[1:]
    assert sum(int(row[1]) for row in rows) == len(TEXT.encode())
    tokens = " ".join(row[3] for row in rows).split(" ")
    names = [tokenizer.decode([i]).replace(" ", "·") for i in tokenizer.encode(TEXT)]
    assert tokens == names
    steps = page.locator(".merges details").first.locator("li")
    assert steps.count() == int(rows[0][2]) + 1
    assert steps.first.locator(".piece").count() == int(rows[0][1])


def test_by_hand_arrives_at_the_models_weights(page, base):
    _, _, one = base
    panel = show(page, panel="hand", layer=0, head=1)
    told = panel.locator(".told").inner_text()
    assert float(re.search(r"is ([\d.e-]+)\.$", told)[1]) < 1e-5
    found = [[float(cell) for cell in row[1:]] for row in table(panel)[1:]]
    expected = one["layers.0.self_attn.heads"][1][:8, :8]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=1e-3)


def test_flow_and_neurons_are_the_recorded_vectors(page, context, base):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    _, _, one = base
    panel = show(page, panel="flow")
    button(panel, "Copy the numbers").click()
    page.get_by_text("Copied.").wait_for()
    data = json.loads(page.evaluate("navigator.clipboard.readText()"))
    torch.testing.assert_close(torch.tensor(data["input"]), one["layers.input"][-1])
    torch.testing.assert_close(torch.tensor(data["stream"]), one["layers.0"][-1])
    rows = table(show(page, panel="neurons", layer=0))
    activations = one["layers.0.mlp.activation"]
    for neuron, *cells in rows[1:]:
        expected = activations[:, int(neuron)].tolist()
        assert [float(cell) for cell in cells] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    strongest = activations[-1].abs().argmax().item()
    assert int(rows[1][0]) == strongest


def test_mistakes_are_one_sentence(page):
    page.expected_complaints = ["status of 40"]
    for state in ({"ids": "1.999999"}, {"ids": "1.x"}, {"target": 10**6}):
        alert = show(page, **state).get_by_role("alert")
        alert.wait_for()
        assert alert.inner_text().count("\n") == 0
    alert = show(page, model="gone").get_by_role("alert")
    assert alert.inner_text() == "There is no model gone here; there are: ppo, sft, base."


def test_panels_are_walked_by_keyboard_and_addressed(page):
    show(page)
    page.get_by_role("tab", name="Flow").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Tokenization").wait_for()
    assert "panel=tokens" in page.url
    page.go_back()
    page.get_by_role("heading", name="Flow").wait_for()


def test_the_tour_leads_through_the_panels(page):
    page.goto("/inside")
    button(page, "Take the tour").click()
    card = page.get_by_role("complementary", name="Tour")
    for number in range(1, 13):
        card.get_by_role("heading", name=f"{number}. ").wait_for()
        page.locator("#panel:not([aria-busy]) .panel").wait_for()
        assert page.locator("#panel").get_by_role("alert").count() == 0
        card.get_by_role("button", name="Next" if number < 12 else "Done").click()
    card.wait_for(state="detached")
