"""Tokenized text on disk: shards that are read in windows, with a manifest that names the hash of
every file.

A split is one stream of tokens, `<|endoftext|> document <|endoftext|> document ... <|endoftext|>`,
cut into files `train-00000.bin`, `train-00001.bin`, ... of 16-bit tokens (32-bit for vocabularies
above 65,536), beside `train.index`, the 64-bit position at which each document starts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seq2chat.config import UserError, check
from seq2chat.text.corpus import Corpus
from seq2chat.text.named import cache_folder
from seq2chat.text.parts import Part
from seq2chat.text.split import sample_fingerprint, split_parts
from seq2chat.text.tokenizers import Tokenizer

FORMAT = 2
SPLITS = ("train", "val")
SHARD_TOKENS = 100_000_000
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int], None]


# Reading


class TokenFile:
    """The tokens of one file, read a slice at a time.

    A memory map would count every page that was once read as memory of this process. The file stays
    open, so that a run goes on if its cache is cleared.
    """

    def __init__(self, file: Path, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._descriptor = os.open(file, os.O_RDONLY)
        self._length = os.fstat(self._descriptor).st_size // dtype.itemsize
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, tokens: slice) -> np.ndarray:
        start, stop, _ = tokens.indices(self._length)
        size = self.dtype.itemsize
        return np.frombuffer(
            os.pread(self._descriptor, (stop - start) * size, start * size), self.dtype
        )


@dataclass(frozen=True)
class Shards:
    """One split as a stream of `n_tokens` tokens.

    `starts` is the position of each document's leading `<|endoftext|>`, uint64 of shape
    `(n_documents,)`. `n_bytes` and `n_characters` measure the text without control tokens.
    `fingerprint` stands for the tokens and their tokenizer, however they are spread over files.
    """

    name: str
    fingerprint: str
    tokenizer: str
    eos_id: int
    n_tokens: int
    n_documents: int
    n_bytes: int
    n_characters: int
    parts: list[TokenFile | np.ndarray] = field(repr=False)
    starts: np.ndarray = field(repr=False)

    def read(self, start: int, count: int) -> np.ndarray:
        """Return tokens start .. start + count - 1, shape `(count,)`, across files."""
        assert start >= 0
        assert start + count <= self.n_tokens
        pieces = []
        for part in self.parts:
            if start < len(part) and count > 0:
                pieces.append(part[start : start + count])
                count -= len(pieces[-1])
                start = 0
            else:
                start -= len(part)
        return np.concatenate(pieces) if pieces else np.empty(0, self.parts[0].dtype)


def open_shards(folder: str | Path, split: str) -> Shards:
    """Return one split of a folder made by `write_shards`.

    Raises UserError naming the file that is missing, of the wrong size or of the wrong hash.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    about = manifest["splits"][split]
    for entry in [*about["files"], about["index"]]:
        _check_file(folder / entry["name"], entry)
    dtype = np.dtype(manifest["dtype"])
    return Shards(
        name=split,
        fingerprint=_fingerprint(about["sha256"], manifest["dtype"], manifest["tokenizer"]),
        tokenizer=manifest["tokenizer"],
        eos_id=manifest["eos_id"],
        n_tokens=about["tokens"],
        n_documents=about["documents"],
        n_bytes=about["bytes"],
        n_characters=about["characters"],
        parts=[TokenFile(folder / entry["name"], dtype) for entry in about["files"]],
        starts=np.memmap(folder / about["index"]["name"], np.uint64, mode="r"),
    )


def shards_in_memory(
    texts: Iterable[str | Part], tokenizer: Tokenizer, name: str = "text"
) -> Shards:
    """Return the stream of `texts`, documents or parts of them, without writing it, for evaluating
    on a file."""
    eos_id, dtype = _eos(tokenizer), _dtype(tokenizer)
    separator = np.array([eos_id], dtype)
    pieces: list[np.ndarray] = []
    starts: list[int] = []
    n_tokens = n_bytes = n_characters = 0
    begins = True
    parts = (text if isinstance(text, Part) else Part(text) for text in texts)
    for part, ids in tokenizer.encode_parts(parts):
        if begins:
            starts.append(n_tokens)
            pieces.append(separator)
            n_tokens += 1
        pieces.append(ids.astype(dtype))
        n_tokens += len(ids)
        n_bytes += len(part.text.encode("utf-8", "replace"))
        n_characters += len(part.text)
        begins = part.ends
    tokens = np.concatenate([*pieces, separator])
    return Shards(
        name=name,
        fingerprint=_fingerprint(
            hashlib.sha256(tokens.tobytes()).hexdigest(), dtype.name, tokenizer.fingerprint
        ),
        tokenizer=tokenizer.fingerprint,
        eos_id=eos_id,
        n_tokens=len(tokens),
        n_documents=len(starts),
        n_bytes=n_bytes,
        n_characters=n_characters,
        parts=[tokens],
        starts=np.array(starts, np.uint64),
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    check(
        file.is_file(),
        f"There are no finished shards in {folder} (no manifest.json); tokenize the text again.",
    )
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError:
        manifest = {}
    check(
        manifest.get("format") == FORMAT,
        f"{file} is damaged or of another version; delete {folder} and tokenize the text again.",
    )
    return manifest


def _check_file(file: Path, entry: dict[str, Any]) -> None:
    again = f"delete {file.parent} and tokenize the text again."
    check(file.is_file(), f"{file} is missing; {again}")
    size = file.stat().st_size
    check(
        size == entry["size"],
        f"{file} is damaged: it has {size} bytes instead of {entry['size']}; {again}",
    )
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    check(found == entry["sha256"], f"{file} is damaged: its sha256 is not the manifest's; {again}")


# Writing


def cached_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    val_fraction: float,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    characters: int = 0,
) -> Path:
    """Return a folder with the shards of this corpus, tokenizer and split, writing them only if
    they are not there.

    With `characters` they are of a sample of that size.

    The folder is under `cache`, by default the user's cache folder.
    """
    text = (
        sample_fingerprint(corpus, val_fraction, characters) if characters else corpus.fingerprint
    )
    key = [FORMAT, text, tokenizer.fingerprint, val_fraction]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    slug = re.sub(r"[^\w.-]+", "-", Path(corpus.name).name)[:40]
    folder = Path(cache or cache_folder() / "shards") / f"{slug}-{digest}"
    if not (folder / "manifest.json").is_file():
        write_shards(
            corpus, tokenizer, folder, val_fraction, progress=progress, characters=characters
        )
    return folder


def write_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: str | Path,
    val_fraction: float,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    characters: int = 0,
) -> None:
    """Tokenize the corpus into `folder`, which appears complete or not at all; older shards in it
    are replaced.

    With `characters` a sample of that size is tokenized.

    `progress(characters_done)` is called after each part. Raises UserError if a split is empty, the
    disk is full, or the folder holds something else.
    """
    folder = Path(folder)
    others = folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").is_file()
    check(not others, f"{folder} holds files that are not shards; name another folder.")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        _write_into(temporary, corpus, tokenizer, val_fraction, characters, shard_tokens, progress)
        _move(temporary, folder)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(
                f"The disk is full: there is no room for the shards in {folder.parent}."
            ) from None
        raise UserError(
            f"The shards cannot be written to {folder}: {error.strerror or error}."
        ) from None
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_into(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    val_fraction: float,
    characters: int,
    shard_tokens: int,
    progress: Progress | None,
) -> None:
    eos_id, dtype = _eos(tokenizer), _dtype(tokenizer)
    writers = {split: _SplitWriter(folder, split, dtype, shard_tokens) for split in SPLITS}
    begins = True
    done = 0
    try:
        for part, ids in tokenizer.encode_parts(split_parts(corpus, val_fraction, characters)):
            if begins:
                writers[part.split].begin_document(np.array([eos_id], dtype))
            writers[part.split].add(part.text, ids.astype(dtype))
            begins = part.ends
            done += len(part.text)
            if progress:
                progress(done)
        for split, writer in writers.items():
            advice = (
                "use a longer text"
                if split == "train"
                else "use a longer text or a larger data.val_fraction"
            )
            check(
                writer.n_documents > 0,
                f"{corpus.name} leaves no text in the {split} split; {advice}.",
            )
            writer.finish(np.array([eos_id], dtype))
    finally:
        for writer in writers.values():
            writer.close()
    manifest = {
        "format": FORMAT,
        "corpus": corpus.name,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": eos_id,
        "dtype": dtype.name,
        "val_fraction": val_fraction,
        "splits": {split: writer.manifest() for split, writer in writers.items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


class _SplitWriter:
    """Writes the stream of one split, opening a new file whenever one holds `shard_tokens`."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.n_tokens = self.n_documents = self.n_bytes = self.n_characters = 0
        self.starts = array("Q")
        self.stream_hash, self.file_hash = hashlib.sha256(), hashlib.sha256()
        self.files: list[dict[str, Any]] = []
        self.index: dict[str, Any] = {}
        self.out: BinaryIO | None = None

    def begin_document(self, separator: np.ndarray) -> None:
        self.starts.append(self.n_tokens)
        self.n_documents += 1
        self._write(separator)

    def add(self, text: str, tokens: np.ndarray) -> None:
        self.n_characters += len(text)
        self.n_bytes += len(text.encode())
        self._write(tokens)

    def finish(self, last: np.ndarray) -> None:
        self._write(last)
        self._end_file()
        data = np.array(self.starts, dtype=np.uint64).tobytes()
        name = f"{self.split}.index"
        (self.folder / name).write_bytes(data)
        self.index = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def close(self) -> None:
        if self.out:
            self.out.close()

    def manifest(self) -> dict[str, Any]:
        return {
            "tokens": self.n_tokens,
            "documents": self.n_documents,
            "bytes": self.n_bytes,
            "characters": self.n_characters,
            "sha256": self.stream_hash.hexdigest(),
            "files": self.files,
            "index": self.index,
        }

    def _write(self, tokens: np.ndarray) -> None:
        while len(tokens):
            room = self.shard_tokens - self.n_tokens % self.shard_tokens
            if self.out is None:
                self.out = (self.folder / self._name()).open("wb")
                self.file_hash = hashlib.sha256()
            data = tokens[:room].tobytes()
            self.out.write(data)
            self.file_hash.update(data)
            self.stream_hash.update(data)
            self.n_tokens += min(room, len(tokens))
            if len(tokens) >= room:
                self._end_file()
            tokens = tokens[room:]

    def _name(self) -> str:
        return f"{self.split}-{len(self.files):05d}.bin"

    def _end_file(self) -> None:
        if self.out:
            size = self.out.tell()
            self.out.close()
            self.out = None
            self.files.append(
                {"name": self._name(), "size": size, "sha256": self.file_hash.hexdigest()}
            )


def _move(temporary: Path, folder: Path) -> None:
    """Put a finished folder in its place, out of which an older one is moved first."""
    temporary.chmod(0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        folder.replace(old)
        shutil.rmtree(old)
    try:
        temporary.replace(folder)
    except OSError as error:
        # Another process finished the same folder first; a manifest is written last, so it is
        # complete.
        if (
            error.errno not in (errno.ENOTEMPTY, errno.EEXIST)
            or not (folder / "manifest.json").is_file()
        ):
            raise


def _eos(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise UserError(
            "The tokenizer has no <|endoftext|> or other end-of-text token to put between"
            " documents."
        )
    return tokenizer.eos_id


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _fingerprint(stream_sha256: str, dtype: str, tokenizer: str) -> str:
    return hashlib.sha256(f"{stream_sha256} {dtype} {tokenizer}".encode()).hexdigest()
