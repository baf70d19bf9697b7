"""Write the output of every `seq2chat explain` command into these pages, and draw their figures.

Run it after a change:

    python docs/guide/make.py

A page has blocks that start with ```console and a line `$ seq2chat explain ...`. The text up to the
closing fence is the output of the command. A test compares the numbers in the pages with those that
the commands print.
"""

import contextlib
import io
import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from seq2chat.cli.explain import explain

GUIDE = Path(__file__).parent
ROOT = GUIDE.parent.parent
BLOCK = re.compile(
    r"(?P<head>```console\n\$ seq2chat explain (?P<arguments>.*)\n)(?P<output>(?s:.*?))(?P<end>```)"
)


def output(arguments: str, figures: Path) -> str:
    """Return the output of `seq2chat explain ARGUMENTS`, run in the root of a clone, with its
    figure drawn in `figures`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(ROOT):
        explain([*shlex.split(arguments), "--out", str(figures)], result_action="return_value")
    lines = printed.getvalue().replace(f"{figures}/", "").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def fill(page: str, run: Callable[[str], str]) -> str:
    """Return the page with the output of each command as `run(arguments)` returns it."""
    return BLOCK.sub(lambda block: block["head"] + run(block["arguments"]) + block["end"], page)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for page in sorted(GUIDE.glob("*.md")):
            text = page.read_text(encoding="utf-8")
            text = fill(text, lambda arguments: output(arguments, Path(scratch)))
            page.write_text(text, encoding="utf-8")
        for figure in Path(scratch).glob("*.png"):
            (GUIDE / "figures" / figure.name).write_bytes(figure.read_bytes())


if __name__ == "__main__":
    main()
