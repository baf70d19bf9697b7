"""Plain text files of any size, read in parts and from any position."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from math import ceil

from seq2chat.text.files import decode, open_bytes
from seq2chat.text.remote import TextFile

BLOCK = 1 << 16  # bytes per read, and the unit in which a large file is sampled
SEPARATOR = "<|endoftext|>"  # separates documents in published dumps
_LINE_END = re.compile(r"\r\n?")


def hash_share(text: str) -> float:
    """Return a number in [0, 1) that is a function of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


class Sample:
    """A stratified sample: a hash picks one of every 1 / share successive units.

    The sample is spread over the whole text, whatever the order of the units, and its size is known
    in advance.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.n_units = 0

    def takes(self) -> bool:
        """Return True if the next unit belongs to the sample."""
        unit = self.n_units
        self.n_units += 1
        stratum = int(unit * self.share)
        if stratum == 0:
            return unit == 0  # so that a sample of a few large units is not empty
        first = ceil(stratum / self.share)
        after = ceil((stratum + 1) / self.share)
        return first + int(hash_share(str(stratum)) * (after - first)) == unit


@dataclass(frozen=True)
class PlainText:
    """One plain text file in UTF-8, which is read lazily.

    Line ends become `\\n`, a byte order mark is dropped, and `<|endoftext|>` separates documents.
    Blank documents are skipped.
    """

    file: TextFile

    @property
    def size(self) -> int:
        """The size of the text in bytes. A gzipped file is read in full to measure it."""
        stat = self.file.stat()
        if self.file.suffix.lower() != ".gz":
            return stat.st_size
        return _unpacked_size(self.file, stat.st_size, stat.st_mtime_ns)

    def count(self) -> int:
        """Return the number of characters, for a large file an estimate from 64 blocks."""
        size = self.size
        if size <= 64 * BLOCK:
            return sum(len(part) for part, _ in self.read())
        # The number of characters per byte is estimated from the sampled blocks.
        sampled = [part for part, _ in self.sample(Sample(64 * BLOCK / size).takes)]
        n_characters = sum(map(len, sampled))
        n_bytes = sum(len(part.encode()) for part in sampled)
        return int(size * n_characters / max(1, n_bytes))

    def read(self, start: int = 0, end: int | None = None) -> Iterator[tuple[str, bool]]:
        """Yield `(text, ends)` for the bytes from `start` to `end`.

        Both positions are moved back to the start of the character or separator that they would
        cut. `ends` is True for the last part of a document.
        """
        with open_bytes(self.file) as stream:
            stop = None if end is None else _boundary(stream, end)
            first = _boundary(stream, start) if start else 0
            stream.seek(first)
            yield from _documents(self._texts(stream, first, stop))

    def sample(
        self, takes: Callable[[], bool], start: int = 0, end: int | None = None
    ) -> Iterator[tuple[str, bool]]:
        """Yield `(text, ends)` for the blocks of 64 KiB between `start` and `end` that `takes()`
        selects.

        Each block is a separate document. The other blocks are not read.
        """
        with open_bytes(self.file) as stream:
            for offset in range(start, self.size if end is None else end, BLOCK):
                if not takes():
                    continue
                stream.seek(offset)
                data = stream.read(BLOCK if end is None else min(BLOCK, end - offset))
                while data and data[0] & 0xC0 == 0x80 and offset:
                    data = data[1:]
                    offset += 1
                text = self._decode(data[: len(data) - _unfinished(data)], offset)
                yield from _documents(iter([text]))

    def _texts(self, stream: BufferedIOBase, offset: int, end: int | None) -> Iterator[str]:
        rest = b""
        while block := stream.read(BLOCK if end is None else min(BLOCK, end - offset - len(rest))):
            data = rest + block
            whole = len(data) - _unfinished(data)
            # A line end of two bytes must not be cut, so its first byte is kept for the next block.
            whole -= data[:whole].endswith(b"\r")
            rest = data[whole:]
            if whole:
                yield self._decode(data[:whole], offset)
                offset += whole
        if rest:
            yield self._decode(rest, offset)

    def documents(self) -> Iterator[str]:
        """Yield each document as one string."""
        text: list[str] = []
        for part, ends in self.read():
            text.append(part)
            if ends:
                yield "".join(text)
                text = []

    def _decode(self, data: bytes, offset: int) -> str:
        text = decode(data, self.file, offset)
        return _LINE_END.sub("\n", text.removeprefix("\ufeff") if offset == 0 else text)


@lru_cache(maxsize=1024)
def _unpacked_size(file: TextFile, size: int, modified: int) -> int:
    """Return the unpacked size of a gzipped file, cached by its size and modification time."""
    total = 0
    with open_bytes(file) as stream:
        while block := stream.read(1 << 22):
            total += len(block)
    return total


def _documents(texts: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Yield `(text, ends)` for documents that end at the separator or at the end of the texts."""
    held = ""
    blank: list[str] = []  # the beginning of the current document, as long as it is blank
    began = False  # True once the current document has yielded text
    for text in texts:
        *documents, held = (held + text).split(SEPARATOR)
        for document in documents:
            if began or document.strip():
                yield "".join([*blank, document]), True
            blank = []
            began = False
        # A separator may start at the end of this text and continue in the next.
        n_suspicious = max(n for n in range(len(SEPARATOR)) if held.endswith(SEPARATOR[:n]))
        safe = len(held) - n_suspicious
        part = held[:safe]
        held = held[safe:]
        if part and (began or part.strip()):
            yield "".join([*blank, part]), False
            blank = []
            began = True
        elif part:
            blank.append(part)
    if began or held.strip():
        yield "".join([*blank, held]), True


def _boundary(stream: BufferedIOBase, position: int) -> int:
    """Return `position`, moved back to the start of a character or separator that it would cut."""
    mark = SEPARATOR.encode()
    first = max(0, position - len(mark) + 1)
    stream.seek(first)
    around = stream.read(position - first + len(mark) - 1)
    separator = around.find(mark)
    if separator >= 0:  # the bytes are too few for one that only ends or starts at `position`
        return first + separator
    at = position - first
    while 0 < at < len(around) and around[at] & 0xC0 == 0x80:
        at -= 1
    return first + at


def _unfinished(data: bytes) -> int:
    """Return the number of bytes at the end of `data` that start an incomplete UTF-8 character."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            return back if _character_length(byte) > back else 0
    return 0


def _character_length(first_byte: int) -> int:
    """Return the number of bytes of a UTF-8 character from its first byte."""
    if first_byte >= 0xF0:
        return 4
    if first_byte >= 0xE0:
        return 3
    return 2 if first_byte >= 0xC0 else 1
