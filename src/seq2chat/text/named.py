"""Named corpora: files pinned by their sha256, from the user's data folder or downloaded."""

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from seq2chat.config import UserError, check
from seq2chat.text.files import numbered_lines
from seq2chat.text.plain import PlainText
from seq2chat.text.rows import read_fields

Progress = Callable[[int, int], None]
Reader = Callable[[Path], Iterator[str | PlainText]]


@dataclass(frozen=True)
class NamedCorpus:
    """One pinned file. It has no URL if it is not published in this form, and users provide it."""

    path: str
    sha256: str
    read: Reader
    url: str = ""


def _read_lines(file: Path) -> Iterator[str]:
    return (line for line, _ in numbered_lines(file))


def _gsm8k(file: Path) -> Iterator[str]:
    return read_fields(file, "question", "answer")


def _hh_rlhf(file: Path) -> Iterator[str]:
    return (text.strip() for text in read_fields(file, "chosen"))


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
        _GITHUB
        + "karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/"
        + "data/tinyshakespeare/input.txt",
    ),
    "wikitext-2-valid": NamedCorpus(
        "wikitext-2/valid.txt",
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        _whole,
        _GITHUB
        + "pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/"
        + "word_language_model/data/wikitext-2/valid.txt",
    ),
    "multi30k-en": _multi30k(
        "train", "en", "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"
    ),
    "multi30k-de": _multi30k(
        "train", "de", "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"
    ),
    "multi30k-fr": _multi30k(
        "train", "fr", "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"
    ),
    "multi30k-val-en": _multi30k(
        "val", "en", "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"
    ),
    "multi30k-val-de": _multi30k(
        "val", "de", "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"
    ),
    "multi30k-val-fr": _multi30k(
        "val", "fr", "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"
    ),
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
    """Return the folder for downloads and tokenized text: `$XDG_CACHE_HOME/seq2chat`, else
    `~/.cache/seq2chat`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seq2chat"


def converted_model(name: str, identity: str) -> Path:
    """Return the place in the cache of a model converted from the files that `identity` names."""
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return cache_folder() / "models" / f"{name}-{key}"


@contextmanager
def cached_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which then becomes `folder`, complete or not at all.

    If another process makes `folder` in the meantime, that one is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        yield temporary
        temporary.chmod(0o755)
        with suppress(OSError):
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_corpus(name: str, progress: Progress | None = None) -> Path:
    """Return the file of the named corpus `name`, downloading it if necessary.

    The folder in $SEQ2CHAT_DATA is searched first. Raises UserError if the file can't be downloaded
    or has another hash.
    """
    corpus = NAMED[name]
    data_folder = os.environ.get("SEQ2CHAT_DATA")
    cached = cache_folder() / "data" / corpus.path
    files = [Path(data_folder) / corpus.path, cached] if data_folder else [cached]
    for file in files:
        if file.is_file():
            digest = hash_file(file)
            check(
                digest == corpus.sha256,
                f"{file} is not the pinned {name}: its sha256 is {digest}, not {corpus.sha256}; "
                "remove or replace it.",
            )
            return file
    if not corpus.url:
        place = f"{corpus.path} in a folder and name that folder in SEQ2CHAT_DATA"
        if data_folder:
            place = f"{data_folder}/{corpus.path}"
        raise UserError(
            f"{name} cannot be downloaded in this form; put it at {place} (sha256 {corpus.sha256})."
        )
    download(corpus.url, corpus.sha256, cached, progress)
    return cached


def download(url: str, sha256: str, file: Path, progress: Progress | None = None) -> None:
    """Download `url` to `file`, which appears only if it is complete and has the right hash.

    `progress(bytes_done, bytes_total)` is called after each block. Raises UserError if the download
    fails or the hash differs.
    """
    part: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=file.name + ".", dir=file.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=30) as response:
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            digest = hashlib.sha256()
            while block := response.read(1 << 16):
                out.write(block)
                digest.update(block)
                done += len(block)
                if progress:
                    progress(done, total)
        check(
            digest.hexdigest() == sha256,
            f"{url} has changed: its sha256 is {digest.hexdigest()}, not {sha256}.",
        )
        part.replace(file)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UserError(
            f"{url} could not be downloaded ({error}); download it yourself and put it at {file}."
        ) from None
    finally:
        if part:
            part.unlink(missing_ok=True)


def hash_file(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
