"""The public names of the package."""

import doctest
import os
import subprocess
import sys

import seq2chat


def test_every_public_name_can_be_imported():
    for name in seq2chat.__all__:
        assert callable(getattr(seq2chat, name)), name


def test_the_package_loads_no_torch():
    code = "import sys, seq2chat; seq2chat.Recipe; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "False\n", process.stderr


def test_the_example_runs():
    result = doctest.testmod(seq2chat)
    assert result.attempted == 2 and result.failed == 0


def test_ctrl_c_during_the_imports_prints_nothing(tmp_path):
    (tmp_path / "cyclopts.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, "-m", "seq2chat", "train"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")
