"""Rows of named fields from JSON, CSV, TSV and Parquet files, one at a time."""

import csv
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.text.files import decode, open_bytes, read_blocks, suffix, whole_characters
from seq2chat.text.remote import TextFile

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
ROW_SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".parquet")
LARGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 128 KiB

_SPACE = re.compile(r"[ \t\r\n]*")


class _DoubledKey(ValueError):
    """Raised for a key that an object has twice with different values."""


def _single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. Raises _DoubledKey for a repeated key with another value.

    `dict` would silently keep the last one.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, value in pairs:
            if fields[name] != value:
                raise _DoubledKey(name)
    return fields


JSON = json.JSONDecoder(object_pairs_hook=_single_keys)


@dataclass(frozen=True)
class Row:
    """The fields of one example, its place `where`, for example "Line 3 of data.jsonl", and the
    `number` in it, here 3."""

    fields: dict[str, Any]
    where: str
    number: int


def is_rows(file: TextFile) -> bool:
    """Return True if the suffix is one of JSON, JSON lines, CSV, TSV or Parquet."""
    return suffix(file) in ROW_SUFFIXES


def read_rows(file: TextFile) -> Iterator[Row]:
    """Yield the rows of a file. Raises UserError naming the line of the first invalid row.

    JSON files hold objects, one per line or over several lines, or arrays of objects. The first
    line of a `.csv` or `.tsv` file names the fields, and all values are strings.
    """
    match suffix(file):
        case ".csv" | ".tsv":
            return _read_table(file)
        case ".parquet":
            return _read_parquet(file)
        case _:
            return _read_json(file)


def field_names(row: Row) -> str:
    """Return the names of the row's fields, for an error message."""
    return ", ".join(map(str, row.fields)) or "none"


def read_fields(file: TextFile, *names: str) -> Iterator[str]:
    """Yield the text of the fields `names` of each row, joined by line breaks."""
    for row in read_rows(file):
        yield "\n".join(field_text(row, file, name) for name in names)


def field_text(row: Row, file: TextFile, name: str) -> str:
    """Return the text of one field. Raises UserError if the row lacks the field or it is not a
    text."""
    if name not in row.fields:
        message = f"{row.where} has no field {name!r}; its fields are: {field_names(row)}."
        if suffix(file) == ".tsv" and len(row.fields) == 2:
            message += ' To learn translation from two columns, write model.family = "transformer".'
        raise UserError(f"{message} Set data.field to one of them.")
    return checked_text(row.fields[name], f"{row.where}, field {name!r},")


def checked_text(value: object, where: str) -> str:
    """Return `value` with U+FFFD for each half of a surrogate pair. Raises UserError if it is not
    a text."""
    check(value is not None, f'{where} is null where text should be; leave it out, or write "".')
    if not isinstance(value, str):
        raise UserError(f"{where} holds a {type(value).__name__} where text should be.")
    return whole_characters(value)


# JSON


def _read_json(file: TextFile) -> Iterator[Row]:
    """Yield the objects in a stream of JSON values: objects, or arrays of objects."""
    text = _Buffer(file)
    n_rows = 0
    while text.skip_space():
        if not text.take("["):
            number = text.line
            where = f"Line {number} of {file}"
            yield json_object(text.value(where), where, number)
            # A comma here means an array without brackets.
            check(
                text.peek() != ",",
                f"{where} is not valid JSON (a comma after the object); write one object per line.",
            )
            continue
        text.skip_space()
        while not text.take("]"):
            n_rows += 1
            where = f"Row {n_rows} (line {text.line}) of {file}"
            yield json_object(text.value(where), where, n_rows)
            text.skip_space()
            if not text.take(","):
                check(
                    text.peek() == "]", f"{where} is not followed by a comma or a closing bracket."
                )
            text.skip_space()


def json_error(error: ValueError | RecursionError, where: str) -> UserError:
    """Return the UserError for an error of the decoder `JSON` at `where`."""
    match error:
        case _DoubledKey():
            return UserError(
                f'{where} has the key "{error}" twice with different values; keep one.'
            )
        case json.JSONDecodeError():
            return UserError(f"{where} is not valid JSON ({error.msg}); write one object per line.")
        case RecursionError():
            return UserError(f"{where} is nested too deeply to be read; leave it out.")
        case _:
            return UserError(f"{where} has a number of too many digits; write it as a string.")


def json_object(value: Any, where: str, number: int) -> Row:
    """Return a JSON value as a row. Raises UserError for a value that is not an object."""
    check(
        isinstance(value, dict),
        f'{where} is not a JSON object; write one such as {{"text": "..."}}.',
    )
    return Row(value, where, number)


class _Buffer:
    """A buffer on the text of a JSON file that holds little more than the current value."""

    def __init__(self, file: TextFile) -> None:
        self.blocks = read_blocks(file)
        self.text = ""
        self.position = 0
        self.line = 1

    def skip_space(self) -> bool:
        """Move to the next character that is not blank. Return False at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.position)
            assert match is not None
            self._move_to(match.end())
            if self.position < len(self.text):
                return True
            if not self._grow():
                return False

    def peek(self) -> str:
        """Return the character at the position, "" at the end of the buffer."""
        return self.text[self.position : self.position + 1]

    def take(self, character: str) -> bool:
        """Move past `character` and return True, or return False if another one comes next."""
        if self.peek() != character:
            return False
        self._move_to(self.position + 1)
        return True

    def value(self, where: str) -> Any:
        """Return the JSON value at the position and move past it. Raises UserError at `where`."""
        while True:
            try:
                value, end = JSON.raw_decode(self.text, self.position)
            except (ValueError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError) and _may_be_cut(error) and self._grow():
                    continue
                raise json_error(error, where) from None
            self._move_to(end)
            return value

    def _move_to(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _grow(self) -> bool:
        """Double the buffer, or add one block, so that a long value is parsed only a few times.

        Return False at the end of the file.
        """
        held = len(self.text) - self.position
        parts = [self.text[self.position :]]
        added = 0
        for block in self.blocks:
            parts.append(block)
            added += len(block)
            if added and added >= held:
                break
        self.text = "".join(parts)
        self.position = 0
        return added > 0


def _may_be_cut(error: json.JSONDecodeError) -> bool:
    """Return True if the error may come from a value that continues after the end of the
    buffer."""
    if error.msg.startswith("Unterminated string"):
        return True
    # The longest escape sequence that the end of the buffer can cut.
    return error.pos >= len(error.doc) - len(r"\ud83d\ude00")


# Tables


def _read_table(file: TextFile) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file. Quoted fields may contain line breaks."""
    csv.field_size_limit(LARGEST_CELL)
    lines = _lines(file)
    first = next(lines, "")
    delimiter = "\t" if suffix(file) == ".tsv" or ("\t" in first and "," not in first) else ","
    if delimiter not in first and ";" in first:
        delimiter = ";"  # in locales with a decimal comma
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    number = 1
    names: list[str] = []
    try:
        for cells in reader:
            where = f"Line {number} of {file}"
            if not names:
                names = [name.strip() for name in cells]
                check(
                    len(set(names)) == len(names),
                    f"{where} names a column twice: {', '.join(names)}.",
                )
            elif cells:
                check(
                    len(cells) == len(names),
                    f"{where} has {len(cells)} fields, but the first line names {len(names)}: "
                    f"{', '.join(names)}.",
                )
                yield Row(dict(zip(names, cells, strict=True)), where, number)
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"Line {number} of {file} is not valid {suffix(file)[1:].upper()} ({error})."
        ) from None


def _lines(file: TextFile) -> Iterator[str]:
    """Yield the lines with their line ends."""
    offset = 0
    with open_bytes(file) as stream:
        for line in stream:
            text = decode(line, file, offset)
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)


def _read_parquet(file: TextFile) -> Iterator[Row]:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise UserError(
            f'{file} needs the pyarrow package; run: pip install "seq2chat[parquet]"'
        ) from None
    number = 0
    try:
        with open_bytes(file) as stream, parquet.ParquetFile(stream) as table:
            for batch in table.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, f"Row {number} of {file}", number)
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is not a Parquet file that can be read: {reason}") from None
