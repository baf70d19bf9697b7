"""Text on standard input."""

import sys
from collections.abc import Iterator

from seq2chat.config import UserError


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input without their ends; none where it is closed.

    Raises UserError for one that is not UTF-8.
    """
    for number, line in enumerate([] if sys.stdin is None else sys.stdin.buffer, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"Line {number} of standard input is not UTF-8: {error}.") from None
