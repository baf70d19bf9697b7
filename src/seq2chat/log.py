"""Lines of text from a long computation to whoever displays them."""

from collections.abc import Callable

Log = Callable[[str], None]
"""Receives one line: a choice for the log, or the current activity for a status display."""


def ignore(line: str) -> None:
    """A `Log` that displays nothing."""
