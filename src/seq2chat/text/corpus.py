"""Text to train on: named corpora, files and folders, Hugging Face data sets, Python's
documentation, and the generated world."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path

from seq2chat.config import UserError, check, recipe_names
from seq2chat.text.files import (
    OTHER_FORMATS,
    check_format,
    exists,
    suffix,
)
from seq2chat.text.jsonlines import JsonLines, is_json_lines
from seq2chat.text.named import NAMED, Progress, find_corpus, hash_file
from seq2chat.text.plain import PlainText
from seq2chat.text.remote import TextFile, is_remote, remote_files
from seq2chat.text.rows import ROW_SUFFIXES, checked_text, is_rows, read_fields, read_rows
from seq2chat.text.shares import mixture
from seq2chat.text.world import VERSION as WORLD_VERSION
from seq2chat.text.world import documents as world_documents

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".org", ".adoc", ".tex")
CODE_SUFFIXES = (
    *(".py", ".pyi", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".kt"),
    *(".swift", ".rb", ".php", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".scala", ".cs", ".sh"),
    ".sql",
)
SUFFIXES = (*TEXT_SUFFIXES, *CODE_SUFFIXES, *ROW_SUFFIXES)
"""Suffixes of the files that are read from a folder, gzipped or not, in upper or lower case."""

Item = str | PlainText | JsonLines
"""A document, or a file of documents."""


@dataclass(frozen=True)
class Corpus:
    """A named text.

    Each call of `read()` yields all documents from the start, where a large file is one item that
    is not yet read.
    """

    name: str
    read: Callable[[], Iterable[Item]] = field(repr=False)
    digest: Callable[[], str] = field(repr=False)
    parts: tuple[tuple[Corpus, Fraction], ...] = ()
    """The texts of a mixture with their shares, which follow each other in `read`."""

    def documents(self) -> Iterator[str]:
        """Yield each document that is not blank.

        Raises UserError at the first invalid place in the files, or if all documents are blank.
        """
        is_empty = True
        for item in self.read():
            for text in (item,) if isinstance(item, str) else item.documents():
                if text.strip():
                    is_empty = False
                    yield text
        check(not is_empty, f"{self.name} is empty; give a text to learn from.")

    @cached_property
    def n_characters(self) -> int:
        """The number of characters, estimated for large files."""
        return sum(len(item) if isinstance(item, str) else item.count() for item in self.read())

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the contents."""
        return self.digest()


def load_corpus(name: str, field: str = "text", progress: Progress | None = None) -> Corpus:
    """Return the corpus `name`: one of `NAMED`, `pydocs`, `world`, `hf:NAME[:CONFIG]`, the path of
    a text, an address such as `s3://bucket/part-*.jsonl`, or a mixture such as
    `a.txt:0.7, world:0.3`.

    A text file is one document. A file of rows (see `read_rows`) has one document per row, in the
    field `field`. A folder consists of its files with one of `SUFFIXES`, sorted by path, without
    files of rows that lack the field (see `left_out`). `world` is 8 MB of the generated world, and
    for example `world:20MB` is 20. `progress(bytes_done, bytes_total)` is called during a download,
    with a total of 0 if the server sends none. Raises UserError if there is no such corpus or file.
    """
    if shares := mixture(name):
        return _mixture(name, [(load_corpus(text, field, progress), s) for text, s in shares])
    if name == "pydocs":
        return Corpus(name, _pydocs, partial(_hash_texts, _pydocs))
    if size := _world_size(name):
        return Corpus(name, partial(_world, size), partial(_world_digest, size))
    if name in NAMED:
        file = find_corpus(name, progress)
        return Corpus(name, partial(NAMED[name].read, file), partial(_hash_files, [file], name))
    if name.startswith("hf:"):
        read = _hugging_face(name, field)
        return Corpus(name, read, partial(_hash_texts, read))
    if is_remote(name):
        return _remote(name, field)
    check(name != "", "There is no text to read; give the path of one, or the name of a corpus.")
    path = Path(name)
    if not path.exists():
        raise UserError(f"There is no corpus or file {name}.{_did_you_mean(path)}")
    files = _files_in(path, field) if path.is_dir() else [path]
    check(
        field == "text" or path.is_dir() or is_rows(path),
        f"{name} is not a file of rows by its suffix, so it has no field {field!r}; leave the "
        f"field out, or give the file one of the suffixes {', '.join(ROW_SUFFIXES)}.",
    )
    reader = partial(_read_file, field=field)
    return Corpus(
        name,
        lambda: (text for file in files for text in reader(file)),
        partial(_hash_files, files, field),
    )


def _remote(name: str, field: str) -> Corpus:
    """Return the text at an address of object storage, which is read there whenever it is used."""
    files, is_folder = remote_files(name)
    if is_folder:
        files = [file for file in files if suffix(file) in SUFFIXES]
        check(bool(files), f"The folder {name} holds no text; put {', '.join(SUFFIXES)} in it.")

    def digest() -> str:
        lines = [field, *(file.identity() for file in files)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    reader = partial(_read_file, field=field)
    return Corpus(name, lambda: (text for file in files for text in reader(file)), digest)


def _mixture(name: str, parts: list[tuple[Corpus, Fraction]]) -> Corpus:
    def digest() -> str:
        lines = [f"{corpus.fingerprint} {share}" for corpus, share in parts]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read() -> Iterable[Item]:
        return (item for corpus, _ in parts for item in corpus.read())

    return Corpus(name, read, digest, tuple(parts))


def left_out(name: str, field: str = "text") -> str:
    """Return a warning about the files of the folder `name` that `load_corpus` skips, or ""."""
    if shares := mixture(name):
        return " ".join(filter(None, (left_out(text, field) for text, _ in shares)))
    folder = Path(name)
    if name in NAMED or not (exists(folder) and folder.is_dir()):
        return ""
    others = [file for file in _visible_files(folder) if suffix(file) not in SUFFIXES]
    sentences = []
    if others:
        convertible = sorted({suffix(file) for file in others} & set(OTHER_FORMATS))
        advice = f" Convert {', '.join(convertible)} to text." if convertible else ""
        sentences.append(
            f"Left out of {name}, because of their suffixes: {_listed(others, folder)}.{advice} A "
            "file of any other suffix is read as text if it is given alone."
        )
    rows = [file for file in _visible_files(folder) if is_rows(file) and _lacks(file, field)]
    if rows:
        sentences.append(
            f"Left out of {name}, because their rows have no field {field!r}: "
            f"{_listed(rows, folder)}. Name another field in data.field."
        )
    return " ".join(sentences)


def _listed(files: list[Path], folder: Path) -> str:
    """Return the first five of the files, and their number."""
    names = [str(file.relative_to(folder)) for file in files[:5]]
    if len(files) > 5:
        names.append("...")
    return f"{', '.join(names)} ({len(files):,} in all)"


def _files_in(folder: Path, field: str) -> list[Path]:
    files = [file for file in _visible_files(folder) if suffix(file) in SUFFIXES]
    files = [file for file in files if not (is_rows(file) and _lacks(file, field))]
    check(
        bool(files),
        f"The folder {folder} holds no text; put {', '.join(SUFFIXES)} files in it. "
        f"{left_out(str(folder), field)}",
    )
    return files


def _lacks(file: Path, field: str) -> bool:
    """Return True if the first row of a file lacks the field, as in the settings of a program.

    Settings may also be a `.json` file without rows. For any other file that can't be read the
    result is False, so that its error is reported later.
    """
    try:
        first = next(read_rows(file), None)
    except UserError:
        return suffix(file) == ".json"
    return first is not None and field not in first.fields


def _visible_files(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(
        file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )


def _did_you_mean(path: Path) -> str:
    siblings = [str(file) for file in path.parent.iterdir()] if path.parent.is_dir() else []
    names = [*NAMED, "pydocs", "world", *recipe_names(), *siblings]
    matches = difflib.get_close_matches(str(path), names, n=1)
    if matches:
        return f" Did you mean {matches[0]}?"
    return f" Give the path of a text or one of: pydocs, {', '.join(NAMED)}, world."


# Reading one file


def _read_file(file: TextFile, field: str) -> Iterator[Item]:
    check_format(file)
    if is_json_lines(file):
        yield JsonLines(file, field)
    elif is_rows(file):
        yield from read_fields(file, field)
    else:
        yield PlainText(file)


# Text without a file


def _pydocs() -> Iterator[str]:
    """Return the documentation topics inside CPython, sorted by name, for example the text of
    `help("for")`."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return (topics[name] for name in sorted(topics))


def _world_size(name: str) -> int:
    """Return the size in bytes for the name `world` or `world:NMB`, and 0 for any other name."""
    match = re.fullmatch(r"world(?::([1-9]\d*)MB)?", name)
    check(
        match is not None or not name.startswith("world:"),
        f"{name} gives no size; write it like world:20MB.",
    )
    return int(match[1] or 8) * 1_000_000 if match else 0


def _world(size: int) -> Iterator[str]:
    """Yield documents of the world, which are ASCII, until they have `size` bytes."""
    for text in world_documents():
        yield text
        size -= len(text)
        if size <= 0:
            return


def _world_digest(size: int) -> str:
    """Return a hash of the version, which changes with every document.

    No text needs to be generated for it.
    """
    return hashlib.sha256(f"world {WORLD_VERSION} {size}".encode()).hexdigest()


def _hugging_face(name: str, field: str) -> Callable[[], Iterator[str]]:
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise UserError(
            f'{name} needs the datasets package; run: pip install "seq2chat[hub]"'
        ) from None
    _, path, *config = name.split(":")
    try:
        rows = datasets.load_dataset(path, *config, split="train")
    except Exception as error:
        raise UserError(f"{name} could not be loaded: {error}") from error
    columns = ", ".join(rows.column_names)
    check(field in rows.column_names, f"{name} has no field {field!r}; its fields are: {columns}.")
    return lambda: (
        checked_text(row[field], f"Row {number} of {name}, field {field!r},")
        for number, row in enumerate(rows, start=1)
    )


# Fingerprints


def _hash_files(files: list[Path], how: str) -> str:
    """Return a hash of the contents of the files, in order, and of the way `how` they are read.

    File names are not part of it, so that a moved file keeps its fingerprint.
    """
    lines = [how, *map(hash_file, files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_texts(read: Callable[[], Iterable[str]]) -> str:
    digest = hashlib.sha256()
    for text in read():
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
