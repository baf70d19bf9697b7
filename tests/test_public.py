"""The public names of the package."""

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import seq2chat


def test_every_public_name_can_be_imported():
    for name in seq2chat.__all__:
        assert callable(getattr(seq2chat, name)), name


def test_the_package_loads_no_torch():
    code = "import sys, seq2chat; seq2chat.Recipe; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "False\n", process.stderr


SOURCES = Path(seq2chat.__file__).parent
EXAMPLES = [file for file in SOURCES.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_of_docstrings_run(file):
    parts = ("seq2chat", *file.relative_to(SOURCES).with_suffix("").parts)
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_page_on_python_runs_as_written(tmp_path, monkeypatch):
    """With fewer steps, and without `transformers`, whose parity has tests of its own."""
    page = (SOURCES.parents[1] / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ours = [block.replace("100 steps", "3 steps") for block in blocks if "Auto" not in block]
    assert len(ours) == len(blocks) - 1
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in ours:
        exec(block, names)
    assert (tmp_path / "runs/mine/checkpoints/step-000003").is_dir()
    assert names["text"] == names["tokenizer"].decode(names["completion"].tokens)


def test_ctrl_c_during_the_imports_prints_nothing(tmp_path):
    (tmp_path / "cyclopts.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, "-m", "seq2chat", "train"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")
