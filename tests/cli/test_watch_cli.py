"""`seq2chat watch`: a page of runs, also beside `seq2chat train --watch`."""

import json
import re
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from command import fail

from seq2chat.cli.train import train
from seq2chat.cli.watch import has_browser, page_of
from seq2chat.config import Recipe
from seq2chat.training.run_folder import RunFolder

TABLES = {
    "tokenizer": {"vocab_size": 270},
    "model": {"context": 16, "n_layer": 1, "n_head": 1, "d_model": 16},
    "train": {"budget": "25 steps", "batch_size": 2, "compile": "off", "precision": "fp32"},
}


def test_mistakes_are_one_sentence(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, words in (
        (["watch", tmp_path / "gone"], "There is no run"),
        (["watch", empty], "make one with `seq2chat train`"),
        (["watch", empty, "--port", 99999], "write a number from 0 to 65535"),
        (["watch", empty, "--host", "0.0.0.0"], "set a key"),
    ):
        assert words in fail(*arguments)


def test_a_run_is_watched_by_a_process_that_ends_with_the_training(tmp_path, capfd):
    run = RunFolder(tmp_path / "run")
    run.create()
    (run.folder / "config.toml").write_text("")
    printed = ""
    with page_of(run.folder):
        end = time.monotonic() + 90
        while not (address := re.search(r"http://[\d.]+:\d+", printed)):
            assert time.monotonic() < end, printed
            time.sleep(0.1)
            printed += capfd.readouterr().err
        with urllib.request.urlopen(f"{address[0]}/api/runs/run", timeout=30) as response:
            assert json.load(response)["last"] == {}
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address[0], timeout=5)


def test_training_opens_the_page_of_its_run(tmp_path, monkeypatch, capsys):
    watched = []

    @contextmanager
    def fake(run):
        watched.append(run)
        yield

    monkeypatch.setattr("seq2chat.cli.watch.page_of", fake)
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 200)
    recipe = tmp_path / "recipe.toml"
    Recipe.from_tables(TABLES | {"data": {"corpus": str(text)}}).save(recipe)
    train(str(recipe), out=tmp_path / "run", watch=True)
    assert watched == [tmp_path / "run"]
    assert "seq2chat watch" in " ".join(capsys.readouterr().err.split())


def test_a_browser_needs_a_window(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not has_browser()
