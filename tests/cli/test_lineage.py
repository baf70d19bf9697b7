"""Translation and BERT as users type them, from their own text to a translation and its picture."""

import json

import pytest
from test_cli import fail, succeed

TINY = [
    "--model.n-layer",
    1,
    "--model.n-head",
    2,
    "--model.d-model",
    32,
    "--model.d-ff",
    64,
    "--tokenizer.vocab-size",
    300,
]


@pytest.fixture(scope="module")
def translator(parallel_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator") / "run"
    data = ["--data.source", parallel_files["source"], "--data.target", parallel_files["target"]]
    succeed("train", *data, "--out", folder, "--budget", "4 epochs", *TINY)
    return folder


@pytest.fixture(scope="module")
def bert(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "run"
    options = ["--model.family", "bert", "--model.context", 32, "--budget", "20 steps"]
    succeed("train", text_file, *options, "--out", folder, *TINY)
    return folder


def test_own_pairs_become_a_translator(translator, tmp_path):
    assert succeed("translate", translator, stdin="the cat\n\nthe moon\n").count("\n") == 3
    written = json.loads(succeed("translate", translator, "--json", stdin="the cat\n"))
    assert written["source"] == "the cat"
    picture = tmp_path / "alignment.png"
    succeed("attention", translator, "--text", "the cat sees", "--out", picture)
    assert picture.stat().st_size > 1000
    succeed("average", translator, "--last", 2, "--out", tmp_path / "averaged")
    assert succeed("translate", tmp_path / "averaged", stdin="the cat\n").count("\n") == 1


def test_a_translation_is_measured_token_by_token(translator, parallel_files):
    own = json.loads(succeed("eval", translator, "--json"))
    metrics = map(json.loads, (translator / "metrics.jsonl").read_text().splitlines())
    last = [m for m in metrics if "val_loss" in m][-1]
    assert own["loss"] == pytest.approx(last["val_loss"], rel=1e-3)
    files = ["--source", parallel_files["source"], "--target", parallel_files["target"]]
    assert json.loads(succeed("eval", translator, *files, "--json"))["tokens"] > own["tokens"]


def test_own_text_becomes_a_bert(bert):
    guesses = json.loads(succeed("fill-mask", bert, "the [MASK] sees a red house", "--json"))
    assert guesses
    assert "bits_per_byte" not in json.loads(succeed("eval", bert, "--json"))


def test_each_command_names_the_one_that_was_meant(translator, bert, parallel_files):
    assert "seq2chat translate" in fail("generate", translator, "--prompt", "the")
    assert "seq2chat fill-mask" in fail("translate", bert, stdin="the cat\n")
    assert "seq2chat translate" in fail("fill-mask", translator, "the [MASK]")
    assert "data.source and data.target" in fail("train", "--data.source", parallel_files["source"])
    message = fail("train", parallel_files["source"], "--model.family", "transformer")
    assert "is not parallel text" in message
