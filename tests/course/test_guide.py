"""The pages of docs/guide show what the commands print, and the code in docs/inside.md runs."""

import importlib.util
import re
import tempfile
from pathlib import Path

import pytest

from seq2chat.cli.explain import explain
from seq2chat.config import GPTConfig
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
spec = importlib.util.spec_from_file_location("guide", GUIDE / "make.py")
guide = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guide)

PAGES = sorted(page.stem for page in GUIDE.glob("*.md") if page.stem != "README")


def test_every_topic_has_its_page():
    assert sorted(name for name in explain if not name.startswith("-")) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_what_its_commands_print(name):
    page = (GUIDE / f"{name}.md").read_text(encoding="utf-8")
    assert f"$ seq2chat explain {name}" in page
    with tempfile.TemporaryDirectory() as figures:
        assert guide.fill(page, lambda arguments: guide.output(arguments, Path(figures))) == page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_figure_and_stands_in_the_index(name):
    page = (GUIDE / f"{name}.md").read_text(encoding="utf-8")
    figures = re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", page)
    assert f"figures/explain-{name}.png" in figures
    for figure in figures:
        assert (GUIDE / figure).read_bytes().startswith(b"\x89PNG")
    assert f"[{name}]({name}.md)" in (GUIDE / "README.md").read_text(encoding="utf-8")


def test_a_changed_number_is_noticed():
    page = (GUIDE / "attention.md").read_text(encoding="utf-8")
    changed = page.replace("8.370", "8.371", 1)
    assert changed != page
    with tempfile.TemporaryDirectory() as figures:
        assert guide.fill(changed, lambda arguments: guide.output(arguments, Path(figures))) == page


def test_code_on_looking_inside_runs_as_written(tmp_path, monkeypatch):
    """In a folder with `runs/mine`, which in the README's example is a GPT of two layers."""
    save_model(
        make_model(GPTConfig(vocab_size=260, context=32, n_layer=2, n_head=2, d_model=8)),
        tmp_path / "runs/mine",
    )
    ByteBPE.train(["The function"], 260).save(tmp_path / "runs/mine")
    monkeypatch.chdir(tmp_path)
    page = (GUIDE.parent / "inside.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict = {}
    for block in blocks:
        exec(block, found)
    assert len(blocks) > 0
    assert found["tape"].tensors["layers.1"].shape == (*found["tokens"].shape, 8)
    assert found["tape"].attention[1].path.startswith("layers.1.")
