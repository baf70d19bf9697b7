"""The pages of docs/guide show what the commands print, and what they say of it is so."""

import importlib.util
import re
import tempfile
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
spec = importlib.util.spec_from_file_location("guide", GUIDE / "make.py")
guide = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guide)

PAGES = sorted(page.stem for page in GUIDE.glob("*.md") if page.stem != "README")


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
