"""Writes the output of every `seq2chat explain` on these pages, and their figures. Run it after a
change:

    python docs/guide/make.py

A page holds blocks that begin with ```console and a line `$ seq2chat explain ...`; what follows up
to the closing fence is the command's output. A test compares the pages with what the commands
print.
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
BLOCK = re.compile(r"(```console\n\$ seq2chat explain (.*)\n)(?s:.*?)(```)")


def output(arguments: str, figures: Path) -> str:
    """Return what `seq2chat explain ARGUMENTS` prints in the root of a clone, its figure drawn in
    `figures`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(ROOT):
        explain([*shlex.split(arguments), "--out", str(figures)], result_action="return_value")
    lines = printed.getvalue().replace(f"{figures}/", "").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def fill(page: str, run: Callable[[str], str]) -> str:
    """Return the page with the output of its commands as `run` gives it."""
    return BLOCK.sub(lambda block: block[1] + run(block[2]) + block[3], page)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for page in sorted(GUIDE.glob("*.md")):
            text = page.read_text(encoding="utf-8")
            page.write_text(
                fill(text, lambda arguments: output(arguments, Path(scratch))), encoding="utf-8"
            )
        for figure in Path(scratch).glob("*.png"):
            (GUIDE / "figures" / figure.name).write_bytes(figure.read_bytes())


if __name__ == "__main__":
    main()
