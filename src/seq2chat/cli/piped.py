"""Standard input, which is typed in a terminal, piped, or closed."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread

from seq2chat.config import UserError

PAUSE = 0.05  # seconds to wait for another line before the lines that have arrived are processed


def is_typed() -> bool:
    """Return True if standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def typed_lines() -> Iterator[str]:
    """Yield the lines that the user types after a prompt, until Ctrl-D."""
    with suppress(EOFError):
        while True:
            yield input("> ")


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input without line ends, or nothing if it is closed.

    A text without `\\n` is split at `\\r`, the line end of old Macs. Raises UserError for a line
    that is not UTF-8.
    """
    for number, line in enumerate([] if sys.stdin is None else sys.stdin.buffer, 1):
        text = _decoded(line, number)
        if number == 1 and not text.endswith("\n"):
            yield from text.removesuffix("\r").split("\r")
        else:
            yield text.rstrip("\r\n")


def piped_pools(most: int) -> Iterator[list[str]]:
    """Yield lists of the lines that have arrived on standard input, at most `most` per list.

    A list is yielded as soon as no more lines arrive, so that a program can write one line and wait
    for the result.
    """
    # A thread reads, because a blocking read can't time out. None marks the end of the input.
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
    """Return all of standard input with `\\n` as line end, "" if it is closed.

    Raises UserError as `piped_lines`.
    """
    lines = [] if sys.stdin is None else sys.stdin.buffer.readlines()
    text = "".join(_decoded(line, number) for number, line in enumerate(lines, 1))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"Line {number} of standard input is not UTF-8: {error}.") from None
