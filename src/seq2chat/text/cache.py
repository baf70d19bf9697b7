"""What the user's cache folder holds: tokenized texts, downloads, and what killed runs left
unfinished."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seq2chat.text.named import NAMED, cache_folder

UNFINISHED = "unfinished"
DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True)
class Entry:
    """One folder or file in the cache: of which text it was made, its size in bytes, and when, in
    Unix seconds."""

    name: str
    path: Path
    text: str
    size: int
    made: float

    @property
    def may_be_in_use(self) -> bool:
        """Whether a run may be writing this entry right now: it is unfinished and younger than a
        day."""
        return self.text == UNFINISHED and time.time() - self.made < DAY

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self) | {"path": str(self.path)}


def cached() -> list[Entry]:
    """Return all that is in the cache, by name."""
    return sorted(_entries(), key=lambda entry: entry.name)


def remove(entry: Entry) -> None:
    """Delete an entry from the disk."""
    if entry.path.is_dir():
        shutil.rmtree(entry.path)
    else:
        entry.path.unlink()


def _entries() -> Iterator[Entry]:
    root = cache_folder()
    shards = root / "shards"
    for folder in shards.iterdir() if shards.is_dir() else ():
        stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
        made = max(stat.st_mtime for stat in (folder.stat(), *stats))
        yield Entry(
            f"shards/{folder.name}",
            folder,
            _text_of(folder),
            sum(stat.st_size for stat in stats),
            made,
        )
    data = root / "data"
    downloads = {corpus.path for corpus in NAMED.values()}
    for file in data.rglob("*") if data.is_dir() else ():
        if file.is_file():
            stat = file.stat()
            text = "download" if file.relative_to(data).as_posix() in downloads else UNFINISHED
            yield Entry(str(file.relative_to(root)), file, text, stat.st_size, stat.st_mtime)


def _text_of(folder: Path) -> str:
    """Return the name of the text whose tokens are in `folder`."""
    if folder.name.startswith("."):
        return UNFINISHED
    try:
        corpus = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["corpus"]
    except (OSError, ValueError, KeyError):
        return "damaged"
    return corpus["name"] if isinstance(corpus, dict) else str(corpus)
