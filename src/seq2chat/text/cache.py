"""The contents of the user's cache folder: tokenized texts, converted models, downloads, and
files that killed runs left unfinished."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seq2chat.config import check
from seq2chat.text.named import NAMED, cache_folder

UNFINISHED = "unfinished"
DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True)
class Entry:
    """One folder or file in the cache.

    `text` names the text it was made from, `size` is in bytes, and `made` is in Unix seconds.
    """

    name: str
    path: Path
    text: str
    size: int
    made: float

    @property
    def may_be_in_use(self) -> bool:
        """True if a run may be writing this entry now: it is unfinished and younger than a day."""
        return self.text == UNFINISHED and time.time() - self.made < DAY

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class Cleared:
    """The result of clearing the cache: deleted entries, entries kept because a run may be writing
    them, and the number of entries before."""

    deleted: list[Entry]
    in_use: list[Entry]
    n_entries: int


def cached() -> list[Entry]:
    """Return all entries of the cache, sorted by name."""
    return sorted(_entries(), key=lambda entry: entry.name)


def clear_cache(names: Sequence[str] = ()) -> Cleared:
    """Delete the named entries, or without names all entries that no run may be writing.

    Raises UserError for a name that is not in the cache.
    """
    entries = {entry.name: entry for entry in cached()}
    for name in names:
        check(
            name in entries,
            f"The cache has no entry {name}; `seq2chat cache list` prints the names.",
        )
    in_use = [] if names else [entry for entry in entries.values() if entry.may_be_in_use]
    deleted = [entries[name] for name in names or entries if entries[name] not in in_use]
    for entry in deleted:
        remove(entry)
    return Cleared(deleted, in_use, len(entries))


def remove(entry: Entry) -> None:
    """Delete an entry from the disk."""
    if entry.path.is_dir():
        shutil.rmtree(entry.path)
    else:
        entry.path.unlink()


def _entries() -> Iterator[Entry]:
    root = cache_folder()
    shards = root / "shards"
    models = root / "models"
    code = root / "code"
    data = root / "data"
    if models.is_dir():
        yield from map(_model_entry, models.iterdir())
    if code.is_dir():
        yield from map(_code_entry, code.iterdir())
    if shards.is_dir():
        yield from map(_shards_entry, shards.iterdir())
    if data.is_dir():
        downloads = {corpus.path for corpus in NAMED.values()}
        for file in data.rglob("*"):
            if file.is_file():
                stat = file.stat()
                is_whole = file.relative_to(data).as_posix() in downloads
                name = str(file.relative_to(root))
                text = "download" if is_whole else UNFINISHED
                yield Entry(name, file, text, stat.st_size, stat.st_mtime)


def _shards_entry(folder: Path) -> Entry:
    return Entry(f"shards/{folder.name}", folder, _text_of(folder), *_size_and_time(folder))


def _model_entry(folder: Path) -> Entry:
    text = UNFINISHED if folder.name.startswith(".") else "converted model"
    return Entry(f"models/{folder.name}", folder, text, *_size_and_time(folder))


def _code_entry(path: Path) -> Entry:
    name = f"code/{path.name}"
    if path.is_dir():
        return Entry(name, path, UNFINISHED, *_size_and_time(path))
    stat = path.stat()
    return Entry(name, path, "compiled code", stat.st_size, stat.st_mtime)


def _size_and_time(folder: Path) -> tuple[int, float]:
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    # A run in progress writes the files, which leaves the folder's own time unchanged.
    made = max(stat.st_mtime for stat in (folder.stat(), *stats))
    return sum(stat.st_size for stat in stats), made


def _text_of(folder: Path) -> str:
    """Return the name of the text whose tokens are in `folder`."""
    if folder.name.startswith("."):
        return UNFINISHED
    try:
        corpus = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["corpus"]
    except (OSError, ValueError, KeyError):
        return "damaged"
    return corpus["name"] if isinstance(corpus, dict) else str(corpus)
