"""What comes on standard input: typed at a terminal, piped, or nothing where it is closed."""

import sys
from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread

from seq2chat.config import UserError

PAUSE = 0.05  # seconds without another line after which those that have arrived are worked on


def is_typed() -> bool:
    """Return whether somebody types at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input without their ends; none where it is closed.

    Text without `\\n` has lines that end with `\\r`, as on old Macs. Raises UserError for one that
    is not UTF-8.
    """
    for number, line in enumerate([] if sys.stdin is None else sys.stdin.buffer, 1):
        text = _decoded(line, number)
        if number == 1 and not text.endswith("\n"):
            yield from text.removesuffix("\r").split("\r")
        else:
            yield text.rstrip("\r\n")


def piped_pools(most: int) -> Iterator[list[str]]:
    """Yield the lines that have arrived on standard input, at most `most` together, as soon as no
    more arrive.

    A program that writes a line and waits for what becomes of it is therefore answered.
    """
    arrived: Queue[str | UserError | None] = Queue(maxsize=most)

    def read() -> None:
        try:
            for line in piped_lines():
                arrived.put(line)
        except UserError as error:
            arrived.put(error)
        arrived.put(None)

    Thread(target=read, daemon=True).start()
    pool: list[str] = []
    while True:
        try:
            item = arrived.get(timeout=PAUSE if pool else None)
        except Empty:
            yield pool
            pool = []
            continue
        if not isinstance(item, str):
            break
        pool.append(item)
        if len(pool) == most:
            yield pool
            pool = []
    if pool:
        yield pool
    if item is not None:
        raise item


def piped_text() -> str:
    """Return all of standard input, nothing where it is closed. Raises UserError as `piped_lines`
    does."""
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
