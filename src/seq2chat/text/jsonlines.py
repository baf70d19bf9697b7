"""Files of JSON lines of any size, counted and sampled without parsing every line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from seq2chat.text.files import decode, open_bytes
from seq2chat.text.plain import BLOCK, Sample
from seq2chat.text.remote import TextFile
from seq2chat.text.rows import JSON, field_text, json_error, json_object, read_fields


@dataclass(frozen=True)
class JsonLines:
    """One file with a JSON object per line, whose `field` is a document."""

    file: TextFile
    field: str

    def count(self) -> int:
        """Return the number of characters in its documents, for a large file an estimate from 64
        blocks."""
        size = self.file.stat().st_size
        if size <= 64 * BLOCK:
            return sum(map(len, self.documents()))
        share = 64 * BLOCK / size
        return int(sum(map(len, self.sample(share))) / share)

    def documents(self) -> Iterator[str]:
        """Yield each document. Raises UserError naming the line of the first invalid one."""
        return read_fields(self.file, self.field)

    def sample(self, share: float) -> Iterator[str]:
        """Yield the documents whose lines start in a sample of the blocks of 64 KiB.

        The other blocks are not read.
        """
        takes = Sample(share).takes
        with open_bytes(self.file) as stream:
            for start in range(0, self.file.stat().st_size, BLOCK):
                if not takes():
                    continue
                stream.seek(max(0, start - 1))
                if start:
                    stream.readline()  # skip the line that started in an earlier block
                while (offset := stream.tell()) < start + BLOCK and (line := stream.readline()):
                    text = decode(line, self.file, offset).removeprefix("\ufeff")
                    if text.strip():
                        yield self._document(text, f"The line at byte {offset:,} of {self.file}")

    def _document(self, line: str, where: str) -> str:
        try:
            fields = JSON.decode(line)
        except (ValueError, RecursionError) as error:
            raise json_error(error, where) from None
        return field_text(json_object(fields, where, 0), self.file, self.field)


def is_json_lines(file: TextFile) -> bool:
    """Return True if the suffix and the first line of the file indicate JSON lines.

    A gzipped file is not, because its blocks can't be skipped.
    """
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        return False
    with open_bytes(file) as stream:
        line = stream.readline(16 * BLOCK)
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
