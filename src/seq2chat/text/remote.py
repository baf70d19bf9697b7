"""Files of object storage, such as `s3://bucket/text.jsonl`, read through fsspec without a local
copy of the text."""

from __future__ import annotations

import hashlib
import importlib
import io
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
# Headers of a web server that change with the content. For fsspec, the address alone identifies a
# file of the web.
VERSIONS = ("ETag", "Last-Modified", "Content-MD5", "Digest")
BUFFER = 1 << 16  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """A file that is read by ranges of bytes. It has the methods of `Path` that readers of text
    use."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def path(self) -> str:
        """The address without a query, such as `?download=true`."""
        return self.url.partition("?")[0]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    def with_suffix(self, suffix: str) -> RemoteFile:
        return RemoteFile(self.path.removesuffix(self.suffix) + suffix)

    def is_fifo(self) -> bool:
        return False

    def open(self, mode: str) -> io.BufferedReader:
        """Return a stream of the file. Raises UserError if it can't be opened or read."""
        with _explained(self.url):
            system, path = _system(self.url)
            return io.BufferedReader(_Stream(system.open(path, mode), self.url), BUFFER)

    def stat(self) -> SimpleNamespace:
        """Return `st_size` in bytes, and `st_mtime_ns`, a number that changes with the content."""
        with _explained(self.url):
            system, path = _system(self.url)
            size = system.info(path)["size"]
        check(size is not None, f"{self.url} has no known size; download it, and give that file.")
        version = hashlib.sha256(self._version().encode()).hexdigest()
        return SimpleNamespace(st_size=size, st_mtime_ns=int(version[:16], 16))

    def identity(self) -> str:
        """Return a string that changes with the content, from what the storage knows of it.

        Hashing the content would read all of it once more, so only that of a web server that tells
        no version is hashed.
        """
        if version := self._version():
            return version
        with self.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _version(self) -> str:
        """Return what the storage knows of the content, or an empty string."""
        with _explained(self.url):
            system, path = _system(self.url)
            if not self.url.startswith(("http://", "https://")):
                return system.ukey(path)
            info = system.info(path)
        versions = [f"{name}: {info[name]}" for name in VERSIONS if name in info]
        return "\n".join([self.url, str(info["size"]), *versions]) if versions else ""


class _Stream(io.RawIOBase):
    """A file of a storage, whose errors while it is read are UserErrors."""

    def __init__(self, file: Any, url: str) -> None:
        self.file = file
        self.url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _explained(self.url):
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _explained(self.url):
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


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
