"""The panel Beams: its table and its drawing are the search of Python."""

import pytest
from serving.web.chat_page import button, needs_browser
from serving.web.test_inside import others, show, table  # noqa: F401  fixtures

from seq2chat.interpret.beams import MAX_STEPS, beams
from seq2chat.interpret.reading import input_ids
from seq2chat.models.folder import load_model
from seq2chat.text.tokenizers import load_tokenizer

pytestmark = needs_browser


@pytest.mark.parametrize("name", ["transformer", "rnn"])
def test_beams_are_pythons(others, name):  # noqa: F811
    page, folder = others
    model = load_model(folder / name)
    tokenizer = load_tokenizer(folder / name)
    ids = input_ids(model, tokenizer, "how are you")
    search = beams(model, ids, tokenizer.eos_id, 3)
    panel = show(page, model=name, text="how are you", panel="beams", k=3)
    rows = table(panel)[1:]
    nodes = [node for step in search.steps[:MAX_STEPS] for node in step]
    assert [float(row[4]) for row in rows] == pytest.approx([n.total for n in nodes], rel=1e-3)
    assert [row[5] == "yes" for row in rows] == [node.ended for node in nodes]
    assert panel.locator("svg.beams rect").count() == len(nodes)
    scores = panel.locator(".effects tbody tr")
    found = [float(row.locator("td").nth(1).inner_text()) for row in scores.all()]
    assert found == pytest.approx([h.score for h in search.hypotheses], rel=1e-3)
    with page.expect_download() as download:
        button(panel, "Save the picture").click()
    picture = download.value.path().read_text()
    assert picture.startswith("<svg") and "fill: rgb" in picture


def test_other_models_have_no_beams(others):  # noqa: F811
    page, _ = others
    panel = show(page, model="llama", text="hello there", panel="beams")
    assert panel.get_by_text("Only a translation model").is_visible()
    assert page.get_by_role("tab", name="Beams").count() == 0
