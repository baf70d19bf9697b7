"""`seq2chat trace` as users type it, on random models of all families."""

import json
import re
import zlib
from base64 import b64decode

import numpy as np
import pytest
import torch
from cli.test_attention_cli import folders, in_a_folder  # noqa: F401  fixtures
from command import fail, succeed

from seq2chat.cli.trace import trace as command
from seq2chat.config import UserError
from seq2chat.interpret.page import trace_page
from seq2chat.interpret.patch import ablate
from seq2chat.interpret.reading import input_texts, window, window_message
from seq2chat.interpret.summary import summary
from seq2chat.interpret.surgery import examine, place, token_id
from seq2chat.interpret.trace import trace
from seq2chat.training.checkpoint import load_checkpoint

TEXT = "the red cat"


def printed(capsys, folder, *arguments, **options):
    command(folder, *arguments, as_json=True, **options)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer", "additive", "fixed"])
def test_json_is_the_trace_of_the_model(name, folders, capsys):  # noqa: F811
    is_translator = name in ("transformer", "additive", "fixed")
    translation = "das Haus" if is_translator else None
    record = printed(capsys, folders[name], TEXT, translation=translation, position=1)
    model, tokenizer = load_checkpoint(folders[name])
    texts = input_texts(model, tokenizer, TEXT, translation)
    one = trace(model, *texts)
    logprobs = one.logprobs(1)
    best = logprobs.topk(10)
    assert [token["id"] for token in record["top"]] == best.indices.tolist()
    assert [token["logprob"] for token in record["top"]] == pytest.approx(
        best.values.tolist(), 1e-4
    )
    assert [token["id"] for token in record["tokens"]] == texts[-1]
    assert record["target"]["id"] == record["top"][0]["id"]
    assert (record["source"] is None) == (not is_translator)
    sites = {site["name"]: tuple(site["shape"]) for site in record["sites"]}
    assert sites == {group.name: group.shape for group in one.groups}
    if name in ("additive", "fixed"):
        assert record["lens"] is record["attribution"] is None
        return
    assert record["lens"][-1]["target"] == pytest.approx(record["target"]["logprob"], abs=1e-4)
    total = sum(part["logit"] for part in record["attribution"])
    assert total == pytest.approx(record["target"]["logit"], abs=1e-3)


def test_tables(folders):  # noqa: F811
    output = succeed(
        "trace", folders["gpt"], TEXT, "--ablate", "1.0", "--patch-from", "the red the"
    )
    for title in (
        r"next token after ",
        r"effect of the interventions",
        r"Each head is taken from the other text, one at a time",
        r"logit lens: the most likely tokens after each part",
        r"parts of the logit of ",
    ):
        assert re.search(title, output), title
    assert "layers.0.self_attn · head 1" in output and "1 self_attn" in output


def test_interventions_are_those_of_python(folders, capsys):  # noqa: F811
    record = printed(capsys, folders["gpt"], TEXT, ablate=["1.1", "0.mlp"], target="cat")
    model, tokenizer = load_checkpoint(folders["gpt"])
    texts = input_texts(model, tokenizer, TEXT)
    off = [ablate("layers.1.self_attn.heads.context", head=1), ablate("layers.0.mlp")]
    after = trace(model, *texts, interventions=off).logprobs(-1)
    before = trace(model, *texts).logprobs(-1)
    first = record["effect"]["tokens"][0]
    assert first["id"] == record["target"]["id"] == token_id(tokenizer, "cat")
    assert first["delta"] == pytest.approx(
        float(after[first["id"]] - before[first["id"]]), abs=1e-4
    )
    assert record["target"]["logprob"] == pytest.approx(first["after"], abs=1e-4)
    patched = printed(capsys, folders["gpt"], TEXT, patch=["layers.1"], patch_from=TEXT)
    assert all(abs(token["delta"]) < 1e-5 for token in patched["effect"]["tokens"])
    swept = printed(capsys, folders["transformer"], TEXT, patch_from=TEXT, translation="das")
    assert np.shape(swept["effects"]["values"]) == (2, 2)
    assert swept["effects"]["sites"] == [f"decoder.{i}.cross_attn.heads.context" for i in range(2)]


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer", "additive", "fixed"])
def test_the_page_has_every_number_and_no_address(name, folders, tmp_path):  # noqa: F811
    model, tokenizer = load_checkpoint(folders[name])
    one = trace(model, *input_texts(model, tokenizer, "a red cat"))
    page = trace_page(one, tokenizer, summary(one, tokenizer) | {"model": "</script>"})
    assert not re.search(r"https?:|src=|href=|@import|url\(", page.html)
    assert page.html.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.html, re.DOTALL)[1])
    maps = {group["site"]: group for group in data["maps"]}
    assert set(maps) == {group.name for group in one.groups if "query" in group.axes}
    assert len(maps) == {"fixed": 0, "transformer": 3}.get(name, 1)
    for site, group in maps.items():
        weights = one.stack(site)[0].reshape(group["shape"])
        numbers = np.frombuffer(zlib.decompress(b64decode(group["data"])), "<u2") / 65535
        assert np.abs(numbers.reshape(weights.shape) - weights.numpy()).max() < 1e-5
        assert weights.shape[2:] == (len(group["queries"]), len(group["keys"]))
    if name in ("additive", "fixed"):
        assert data["grid"] is None
    else:
        best = one.logits.argmax(-1).tolist()
        assert data["grid"]["ids"][-1] == best[-64:]
    page.save(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == page.html
    frame = page._repr_html_()
    assert frame.startswith("<iframe srcdoc=") and frame.count("<") == 2


def test_a_long_text_is_cut_to_its_end(folders):  # noqa: F811
    model, tokenizer = load_checkpoint(folders["gpt"])
    result = examine(model, tokenizer, "the cat sees the red house " * 9).summary
    total = result["window"]["total"]
    assert len(result["tokens"]) == 24 < total
    assert result["window"]["start"] == total - 24
    assert result["message"].startswith(f"The text has {total} tokens; the model read 24 of them")
    assert window([1, 2, 3, 4], 2, 1) == ([2, 3], 1) and window_message(4, 0, 4) is None
    with pytest.raises(UserError, match="The text has no token 4; it has 4 tokens"):
        window([1, 2, 3, 4], 2, 4)


def test_mistakes_end_in_one_sentence(folders):  # noqa: F811
    gpt = folders["gpt"]
    message = fail("trace", gpt, TEXT, "--ablate", "1.mpl")
    assert message == "error: There is no site layers.1.mpl. Did you mean layers.1.mlp?"
    assert "is 3 tokens" in fail("trace", gpt, TEXT, "--target", "qqq")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablate": ["5.0"]}, "There is no layer 5, as in 5.0; the layers are 0 to 1"),
        ({"ablate": ["0.9"]}, "has no head 9; they are 0 to 1"),
        ({"position": 40}, "The text has no position 40"),
        ({"target": "999"}, "There is no token 999|is 3 tokens"),
        ({"patch": ["0.1"]}, "--patch needs another text"),
        ({"patch_from": "the"}, "The texts differ in their number of tokens"),
        ({"translation": "das"}, "A gpt does not translate"),
        ({"out": "page.png"}, "end its name in .html"),
    ],
)
def test_options_that_are_not_possible(options, message, folders, tmp_path):  # noqa: F811
    if "out" in options:
        options = {"out": tmp_path / options["out"]}
    with pytest.raises(UserError, match=message):
        command(folders["gpt"], TEXT, **options)


def test_places_in_other_families(folders):  # noqa: F811
    translator, _ = load_checkpoint(folders["transformer"])
    assert place(translator, "1.1") == ("decoder.1.cross_attn.heads.context", 1)
    assert place(translator, "1.self_attn") == ("decoder.1.self_attn", None)
    assert place(translator, "encoder.0.mlp") == ("encoder.0.mlp", None)
    rnn, _ = load_checkpoint(folders["additive"])
    with pytest.raises(UserError, match="A seq2seq has no heads, so there is no"):
        place(rnn, "1.1")


def test_a_distribution_without_finite_numbers_is_json():
    from seq2chat.interpret.summary import number

    assert number(float("-inf")) == -9999.0 and number(torch.tensor(1 / 3)) == 0.333333
    for value in (float("inf"), float("nan")):
        with pytest.raises(UserError, match="not finite"):
            number(value)
