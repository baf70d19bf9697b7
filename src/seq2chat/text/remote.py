"""Files of object storage, such as `s3://bucket/text.jsonl`, read through fsspec without a local
copy of the text."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from seq2chat.config import UserError, check

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
PACKAGES |= {"az": "adlfs", "http": "aiohttp", "https": "aiohttp"}


@dataclass(frozen=True)
class RemoteFile:
    """A file that is read by ranges of bytes. It has the methods of `Path` that readers of text
    use."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.url).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.url).stem

    def with_suffix(self, suffix: str) -> RemoteFile:
        return RemoteFile(self.url.removesuffix(self.suffix) + suffix)

    def is_fifo(self) -> bool:
        return False

    def open(self, mode: str) -> Any:
        """Return a stream of the file. Raises UserError if it can't be opened."""
        with _explained(self.url):
            system, path = _system(self.url)
            return system.open(path, mode)

    def stat(self) -> SimpleNamespace:
        """Return `st_size` in bytes, and `st_mtime_ns`, a number that changes with the content."""
        with _explained(self.url):
            system, path = _system(self.url)
            changed = int(system.ukey(path)[:16], 16)
            return SimpleNamespace(st_size=system.info(path)["size"], st_mtime_ns=changed)

    def identity(self) -> str:
        """Return a string that changes with the content, from what the storage knows of it.

        Hashing the content would read all of it once more.
        """
        with _explained(self.url):
            system, path = _system(self.url)
            return system.ukey(path)


TextFile = Path | RemoteFile


def is_remote(name: str) -> bool:
    """Return True for an address such as `s3://bucket/text.txt`."""
    return "://" in name


def remote_files(url: str) -> tuple[list[RemoteFile], bool]:
    """Return the file at `url`, or the files in a folder or of a pattern such as
    `s3://bucket/part-*.jsonl`, sorted; and whether it is a folder.

    Raises UserError if there are none, or if a package for this storage is missing.
    """
    with _explained(url):
        system, path = _system(url)
        is_folder = "*" not in path and system.isdir(path)
        if is_folder or "*" in path:
            paths = system.find(path) if is_folder else system.glob(path)
            files = [RemoteFile(system.unstrip_protocol(file)) for file in sorted(paths)]
        else:
            files = [RemoteFile(url)] if system.exists(path) else []
    check(bool(files), f"There is no file {url}; give the address of one, or a pattern with *.")
    return files, is_folder


@lru_cache(maxsize=1024)
def _system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it."""
    core = importlib.import_module("fsspec.core")
    return core.url_to_fs(url)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raise UserError for any error of the storage's own package."""
    try:
        yield
    except UserError:
        raise
    except ImportError:
        package = PACKAGES.get(url.split("://")[0])
        advice = f"pip install {package}" if package else 'pip install "seq2chat[hub]"'
        raise UserError(f"{url} needs a package that is not installed; run: {advice}") from None
    except FileNotFoundError:
        raise UserError(f"There is no file {url} any more.") from None
    except Exception as error:
        raise UserError(f"{url} cannot be read: {error or type(error).__name__}.") from None
