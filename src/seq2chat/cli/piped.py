"""What comes on standard input: typed at a terminal, piped, or nothing where it is closed."""

import sys
from collections.abc import Iterator

from seq2chat.config import UserError


def is_typed() -> bool:
    """Return whether somebody types at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input without their ends; none where it is closed.

    Text without `\\n` has lines that end with `\\r`, as on old Macs. Raises UserError for one that is not UTF-8.
    """
    for number, line in enumerate([] if sys.stdin is None else sys.stdin.buffer, 1):
        text = _decoded(line, number)
        if number == 1 and not text.endswith("\n"):
            yield from text.removesuffix("\r").split("\r")
        else:
            yield text.rstrip("\r\n")


def piped_text() -> str:
    """Return all of standard input, nothing where it is closed. Raises UserError as `piped_lines` does."""
    lines = [] if sys.stdin is None else sys.stdin.buffer.readlines()
    return (
        "".join(_decoded(line, number) for number, line in enumerate(lines, 1))
        .replace("\r\n", "\n")
        .replace("\r", "\n")
    )


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"Line {number} of standard input is not UTF-8: {error}.") from None
