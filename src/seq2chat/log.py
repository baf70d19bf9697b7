"""Lines of text from a long computation to whoever displays them."""

import sys
from collections.abc import Callable

Log = Callable[[str], None]
"""Receives one line: a choice for the log, or the current activity for a status display."""


def ignore(line: str) -> None:
    """A `Log` that displays nothing."""


def print_once(line: str) -> None:
    """Print a line about work that takes seconds and is done only once, on standard error."""
    print(line, file=sys.stderr, flush=True)
