"""The pages of docs/guide have the numbers that the commands print, and the code in docs/inside.md
runs."""

import importlib.util
import re
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

NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|[-−]?∞")
PAGES = sorted(page.stem for page in GUIDE.glob("*.md") if page.stem != "README")


def test_every_topic_has_its_page():
    assert sorted(name for name in explain if not name.startswith("-")) == PAGES


def numbers(text: str) -> list[str]:
    """Return the numbers in `text` in order. Its words are free to change."""
    return NUMBER.findall(text)


def differences(page: str, figures: Path) -> list[str]:
    """Return the commands whose numbers in `page` are not those that they print."""
    return [
        block["arguments"]
        for block in guide.BLOCK.finditer(page)
        if numbers(block["output"]) != numbers(guide.output(block["arguments"], figures))
    ]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_numbers_of_its_commands(name, tmp_path):
    page = (GUIDE / f"{name}.md").read_text(encoding="utf-8")
    assert f"$ seq2chat explain {name}" in page
    assert differences(page, tmp_path) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_figure_and_stands_in_the_index(name):
    page = (GUIDE / f"{name}.md").read_text(encoding="utf-8")
    figures = re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", page)
    assert f"figures/explain-{name}.png" in figures
    for figure in figures:
        assert (GUIDE / figure).read_bytes().startswith(b"\x89PNG")
    assert f"[{name}]({name}.md)" in (GUIDE / "README.md").read_text(encoding="utf-8")


def test_numbers_are_compared_and_words_are_not(tmp_path):
    page = (GUIDE / "attention.md").read_text(encoding="utf-8")
    assert differences(page.replace("weights = softmax", "softmax"), tmp_path) == []
    for old, new in (("8.370", "8.371"), ("6.398", "6.39"), ("8.370", "-8.370")):
        changed = page.replace(old, new, 1)
        assert changed != page
        assert "attention" in differences(changed, tmp_path)


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
