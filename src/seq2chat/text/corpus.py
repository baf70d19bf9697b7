"""Where text comes from: named corpora fetched by hash, files and folders, a Hugging Face data set, Python's docs."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from seq2chat.config import UserError, check, recipe_names
from seq2chat.text.files import (
    OTHER_FORMATS,
    check_format,
    decode,
    numbered_lines,
    open_bytes,
    suffix,
    whole_characters,
)
from seq2chat.text.plain import PlainText
from seq2chat.text.rows import ROW_SUFFIXES, field_names, is_rows, read_rows
from seq2chat.text.world import VERSION as WORLD_VERSION
from seq2chat.text.world import documents as world_documents

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".org", ".adoc", ".tex")
CODE_SUFFIXES = (".py", ".pyi", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".kt", ".swift")
CODE_SUFFIXES += (".rb", ".php", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".scala", ".cs", ".sh", ".sql")
SUFFIXES = (*TEXT_SUFFIXES, *CODE_SUFFIXES, *ROW_SUFFIXES)
"""Files that are read from a folder, gzipped or not, in upper or lower case."""

Progress = Callable[[int, int], None]
Reader = Callable[[Path], Iterator[str | PlainText]]


@dataclass(frozen=True)
class Corpus:
    """Named text. `read()` starts over each time it is called; it yields documents, and plain text files unread."""

    name: str
    read: Callable[[], Iterable[str | PlainText]] = field(repr=False)
    digest: Callable[[], str] = field(repr=False)

    def documents(self) -> Iterator[str]:
        """Yield each document that is not blank.

        Raises UserError at the first mistake in the files, or if all documents are blank.
        """
        empty = True
        for item in self.read():
            for text in item.documents() if isinstance(item, PlainText) else (item,):
                if text.strip():
                    empty = False
                    yield text
        check(not empty, f"{self.name} is empty; give a text to learn from.")

    @cached_property
    def n_characters(self) -> int:
        """How many characters it has; of large plain text files an estimate."""
        return sum(item.count() if isinstance(item, PlainText) else len(item) for item in self.read())

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the contents."""
        return self.digest()


@dataclass(frozen=True)
class NamedCorpus:
    """One pinned file. Without a URL nobody publishes it in this form, and the user puts it in place."""

    path: str
    sha256: str
    read: Reader
    url: str = ""


def load_corpus(name: str, field: str = "text", progress: Progress | None = None) -> Corpus:
    """Return the corpus called `name`: one of `NAMED`, `pydocs`, `world`, `hf:NAME[:CONFIG]`, or the path of a text.

    A text file is one document. A file of rows (see `read_rows`) has one document per row, in the field `field`. A
    folder holds its files with one of `SUFFIXES`, in order of their paths, without rows that lack the field; see
    `left_out`. `world` is 8 MB of the generated world, and `world:20MB` is 20. `progress(bytes_done, bytes_total)` is
    called during a download, with a total of 0 where the server gives none.
    Raises UserError if there is no such corpus or file.
    """
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
    check(name != "", "Which text? Give the path of one, or the name of a corpus.")
    path = Path(name)
    if not path.exists():
        raise UserError(f"There is no corpus or file {name}.{_did_you_mean(path)}")
    files = _files_in(path, field) if path.is_dir() else [path]
    reader = partial(_read_file, field=field)
    return Corpus(name, lambda: (text for file in files for text in reader(file)), partial(_hash_files, files, field))


def left_out(name: str, field: str = "text") -> str:
    """Return a sentence about the files of the folder `name` that `load_corpus` does not read, "" if it reads all."""
    folder = Path(name)
    if name in NAMED or not folder.is_dir():
        return ""
    others = [file for file in _visible_files(folder) if suffix(file) not in SUFFIXES]
    sentences = []
    if others:
        convertible = sorted({suffix(file) for file in others} & set(OTHER_FORMATS))
        advice = f" Convert {', '.join(convertible)} to text." if convertible else ""
        sentences.append(
            f"Left out of {name}, because of their suffixes: {_listed(others, folder)}.{advice} A file of any other "
            "suffix is read as text if it is given alone."
        )
    rows = [file for file in _visible_files(folder) if is_rows(file) and _lacks(file, field)]
    if rows:
        sentences.append(
            f"Left out of {name}, because their rows have no field {field!r}: {_listed(rows, folder)}. Name another "
            "field with --data.field."
        )
    return " ".join(sentences)


def _listed(files: list[Path], folder: Path) -> str:
    """Return the first few of the files and how many there are."""
    shown = ", ".join(str(file.relative_to(folder)) for file in files[:5]) + (", ..." if len(files) > 5 else "")
    return f"{shown} ({len(files):,} in all)"


def _files_in(folder: Path, field: str) -> list[Path]:
    files = [file for file in _visible_files(folder) if suffix(file) in SUFFIXES]
    files = [file for file in files if not (is_rows(file) and _lacks(file, field))]
    check(
        bool(files),
        f"The folder {folder} holds no text; put {', '.join(SUFFIXES)} files in it. {left_out(str(folder), field)}",
    )
    return files


def _lacks(file: Path, field: str) -> bool:
    """Return whether the first row of a file lacks the field, as in the settings of a program.

    Settings may also be a `.json` file that holds no rows. Any other file that can't be read does not lack the field,
    so that the mistake in it is reported.
    """
    try:
        first = next(read_rows(file), None)
    except UserError:
        return suffix(file) == ".json"
    return first is not None and field not in first.fields


def _visible_files(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def _did_you_mean(path: Path) -> str:
    siblings = [str(file) for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), [*NAMED, "pydocs", "world", *recipe_names(), *siblings], n=1)
    return (
        f" Did you mean {near[0]}?"
        if near
        else f" Give the path of a text or one of: pydocs, {', '.join(NAMED)}, world."
    )


# Reading one file


def _read_file(file: Path, field: str) -> Iterator[str | PlainText]:
    check_format(file)
    if is_rows(file):
        yield from _read_texts(file, field)
    else:
        yield PlainText(file)


def _read_text(file: Path) -> str:
    with open_bytes(file) as stream:
        return decode(stream.read(), file, 0).removeprefix("\ufeff")


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file, gzipped or not, without their ends; blank ones are kept, so that their numbers hold.

    A file without `\\n` has lines that end with `\\r`, as on old Macs. Raises UserError if it cannot be read as text,
    and for a table.
    """
    check_format(file)
    check(
        not is_rows(file),
        f"{file} is a table by its name, not one sentence per line. To train on its two columns, write: seq2chat train "
        f"{file} --model.family transformer. To get one column of a .tsv file: cut -f1 {file} > column.txt",
    )
    text = _read_text(file)
    lines = text.split("\n" if "\n" in text else "\r")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _read_lines(file: Path) -> Iterator[str]:
    return (line for line, _ in numbered_lines(file))


def _read_texts(file: Path, *names: str) -> Iterator[str]:
    """Yield for each row of a file the text of its fields `names`, one below the other."""
    for row in read_rows(file):
        texts = []
        for name in names:
            if name not in row.fields:
                message = f"{row.where} has no field {name!r}; its fields are: {field_names(row)}."
                if suffix(file) == ".tsv" and len(row.fields) == 2:
                    message += " To learn translation from two columns: --model.family transformer."
                raise UserError(f"{message} Name one with --data.field.")
            texts.append(checked_text(row.fields[name], f"{row.where}, field {name!r},"))
        yield "\n".join(texts)


def checked_text(value: object, where: str) -> str:
    """Return a value that is a text, with U+FFFD for each half of a surrogate pair. Raises UserError for another."""
    check(value is not None, f'{where} is null where text should be; leave it out, or write "".')
    if not isinstance(value, str):
        raise UserError(f"{where} holds a {type(value).__name__} where text should be.")
    return whole_characters(value)


# Named corpora


def _gsm8k(file: Path) -> Iterator[str]:
    return _read_texts(file, "question", "answer")


def _hh_rlhf(file: Path) -> Iterator[str]:
    return (text.strip() for text in _read_texts(file, "chosen"))


def _whole(file: Path) -> Iterator[PlainText]:
    yield PlainText(file)


_GITHUB = "https://raw.githubusercontent.com/"
_MULTI30K = _GITHUB + "multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"


def _multi30k(split: str, language: str, sha256: str) -> NamedCorpus:
    name = f"{split}.{language}.gz"
    return NamedCorpus(f"multi30k/{name}", sha256, _read_lines, _MULTI30K + name)


NAMED = {
    "tinyshakespeare": NamedCorpus(
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        _whole,
        _GITHUB + "karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    ),
    "wikitext-2-valid": NamedCorpus(
        "wikitext-2/valid.txt",
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        _whole,
        _GITHUB
        + "pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/valid.txt",
    ),
    "multi30k-en": _multi30k("train", "en", "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
    "multi30k-de": _multi30k("train", "de", "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
    "multi30k-fr": _multi30k("train", "fr", "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
    "multi30k-val-en": _multi30k("val", "en", "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
    "multi30k-val-de": _multi30k("val", "de", "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
    "multi30k-val-fr": _multi30k("val", "fr", "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
    "gsm8k": NamedCorpus(
        "gsm8k/train.jsonl.gz",
        "047ae96fb3025b18b8cfa89c4f9e9c7cd5120906864d58c3f93c91c495da6449",
        _gsm8k,
    ),
    "hh-rlhf": NamedCorpus(
        "hh-rlhf/harmless-base.part.jsonl.gz",
        "75e40115ead02cc5c7aec7d9443d8fd2a470024e25d5391b5d94d7ba8a69703b",
        _hh_rlhf,
    ),
}


def cache_folder() -> Path:
    """Return the folder for downloads and tokenized text: `$XDG_CACHE_HOME/seq2chat`, else `~/.cache/seq2chat`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seq2chat"


def find_corpus(name: str, progress: Progress | None = None) -> Path:
    """Return the file of the named corpus `name`, downloaded first if it must be. Raises UserError if it cannot be."""
    corpus = NAMED[name]
    given = os.environ.get("SEQ2CHAT_DATA")
    cached = cache_folder() / "data" / corpus.path
    for file in [Path(given) / corpus.path, cached] if given else [cached]:
        if file.is_file():
            found = _hash_file(file)
            check(
                found == corpus.sha256,
                f"{file} is not the pinned {name}: its sha256 is {found}, not {corpus.sha256}; remove or replace it.",
            )
            return file
    if not corpus.url:
        where = (
            f"{given}/{corpus.path}" if given else f"{corpus.path} in a folder and name that folder in SEQ2CHAT_DATA"
        )
        raise UserError(f"{name} cannot be downloaded in this form; put it at {where} (sha256 {corpus.sha256}).")
    download(corpus.url, corpus.sha256, cached, progress)
    return cached


def download(url: str, sha256: str, file: Path, progress: Progress | None = None) -> None:
    """Fetch `url` to `file`, which appears only when it is complete and its sha256 is right.

    Raises UserError if it cannot be fetched, or is not the pinned file.
    """
    part: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=file.name + ".", dir=file.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=30) as response:
            total, done, digest = int(response.headers.get("Content-Length") or 0), 0, hashlib.sha256()
            while block := response.read(1 << 16):
                out.write(block)
                digest.update(block)
                done += len(block)
                if progress:
                    progress(done, total)
        check(digest.hexdigest() == sha256, f"{url} has changed: its sha256 is {digest.hexdigest()}, not {sha256}.")
        part.replace(file)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UserError(f"{url} could not be downloaded ({error}); fetch it by hand and put it at {file}.") from None
    finally:
        if part:
            part.unlink(missing_ok=True)


# Text that is no file


def _pydocs() -> Iterator[str]:
    """Yield the documentation topics that ship inside CPython (what `help("for")` prints), in order of their names."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return (topics[name] for name in sorted(topics))


def _world_size(name: str) -> int:
    """Return the bytes that `world` or `world:NMB` asks for, 0 for any other name."""
    asked = re.fullmatch(r"world(?::([1-9]\d*)MB)?", name)
    check(asked is not None or not name.startswith("world:"), f"{name} gives no size; write it like world:20MB.")
    return int(asked[1] or 8) * 1_000_000 if asked else 0


def _world(size: int) -> Iterator[str]:
    """Yield documents of the world until they hold `size` bytes; its text is ASCII."""
    for text in world_documents():
        yield text
        size -= len(text)
        if size <= 0:
            return


def _world_digest(size: int) -> str:
    """A hash of the version, which changes whenever a document does: no text need be written to know it."""
    return hashlib.sha256(f"world {WORLD_VERSION} {size}".encode()).hexdigest()


def _hugging_face(name: str, field: str) -> Callable[[], Iterator[str]]:
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise UserError(f'{name} needs the datasets package; run: pip install "seq2chat[hub]"') from None
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


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_files(files: list[Path], how: str) -> str:
    """Hash contents, in order, and how they are read; not names, so that a moved file keeps its fingerprint."""
    return hashlib.sha256("\n".join([how, *(_hash_file(file) for file in files)]).encode()).hexdigest()


def _hash_texts(read: Callable[[], Iterable[str]]) -> str:
    digest = hashlib.sha256()
    for text in read():
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
