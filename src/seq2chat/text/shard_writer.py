"""Tokenize a corpus into shards on disk; see `shards` for their format."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seq2chat.config import UserError, check
from seq2chat.text.corpus import Corpus
from seq2chat.text.split import split_parts
from seq2chat.text.tokenizers import Tokenizer

FORMAT = 3
SPLITS = ("train", "val")
SHARD_TOKENS = 100_000_000
# A sampled hash reads at most 256 KiB of a file, and so all of a smaller one.
SAMPLED_BLOCKS = 64
SAMPLED_BLOCK = 4096  # bytes
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int], None]


def write_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: str | Path,
    val_fraction: float,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    characters: int = 0,
) -> None:  # the options are keywords of the public API
    """Tokenize the corpus into `folder`, which appears complete or not at all.

    Older shards in it are replaced. If `characters` is not 0, a sample of about that size is
    tokenized. `progress(characters_done)` is called after each part. Raises UserError if a split is
    empty, the disk is full, or the folder holds other files.
    """
    folder = Path(folder)
    others = folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").is_file()
    check(not others, f"{folder} holds files that are not shards; name another folder.")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        writers = {
            split: _SplitWriter(temporary, split, tokenizer, shard_tokens) for split in SPLITS
        }
        _write_splits(
            writers,
            corpus,
            tokenizer,
            val_fraction=val_fraction,
            characters=characters,
            progress=progress,
        )
        manifest = {
            "format": FORMAT,
            "corpus": corpus.name,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": require_eos(tokenizer),
            "dtype": token_dtype(tokenizer).name,
            "val_fraction": val_fraction,
            "splits": {split: writer.manifest() for split, writer in writers.items()},
        }
        text = json.dumps(manifest, indent=2) + "\n"
        (temporary / "manifest.json").write_text(text, encoding="utf-8")
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


def require_eos(tokenizer: Tokenizer) -> int:
    """Return the id of the end-of-text token. Raises UserError for a tokenizer without one."""
    if tokenizer.eos_id is None:
        raise UserError(
            "The tokenizer has no <|endoftext|> or other end-of-text token to put between"
            " documents."
        )
    return tokenizer.eos_id


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Return the smallest dtype for the ids of a tokenizer, uint16 or uint32."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _write_splits(
    writers: dict[str, _SplitWriter],
    corpus: Corpus,
    tokenizer: Tokenizer,
    val_fraction: float,
    characters: int,
    progress: Progress | None,
) -> None:
    begins = True
    n_characters = 0
    try:
        for part, ids in tokenizer.encode_parts(split_parts(corpus, val_fraction, characters)):
            writer = writers[part.split]
            if begins:
                writer.begin_document()
            writer.add(part.text, ids)
            begins = part.ends
            n_characters += len(part.text)
            if progress:
                progress(n_characters)
        for split, writer in writers.items():
            advice = "" if split == "train" else " or a larger data.val_fraction"
            check(
                writer.n_documents > 0,
                f"{corpus.name} leaves no text in the {split} split; use a longer text{advice}.",
            )
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()


class _SplitWriter:
    """A writer for the stream of one split, with at most `shard_tokens` tokens per file."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self.folder = folder
        self.split = split
        self.shard_tokens = shard_tokens
        self.dtype = token_dtype(tokenizer)
        self.separator = np.array([require_eos(tokenizer)], self.dtype)
        self.n_tokens = 0
        self.n_documents = 0
        self.n_bytes = 0
        self.n_characters = 0
        self.starts = array("Q")
        self.stream_hash = hashlib.sha256()
        self.file_hash = hashlib.sha256()
        self.files: list[dict[str, Any]] = []
        self.index: dict[str, Any] = {}
        self.out: BinaryIO | None = None

    def begin_document(self) -> None:
        self.starts.append(self.n_tokens)
        self.n_documents += 1
        self._write(self.separator)

    def add(self, text: str, ids: np.ndarray) -> None:
        self.n_characters += len(text)
        self.n_bytes += len(text.encode())
        self._write(ids.astype(self.dtype))

    def finish(self) -> None:
        """Write the last separator and the index of documents."""
        self._write(self.separator)
        self._end_file()
        data = np.array(self.starts, dtype=np.uint64).tobytes()
        name = f"{self.split}.index"
        (self.folder / name).write_bytes(data)
        self.index = self._entry(name, len(data), hashlib.sha256(data).hexdigest())

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
            self.files.append(self._entry(self._name(), size, self.file_hash.hexdigest()))

    def _entry(self, name: str, size: int, sha256: str) -> dict[str, Any]:
        """Return the entry of a complete file in the manifest."""
        sampled = sampled_sha256(self.folder / name)
        return {"name": name, "size": size, "sha256": sha256, "sampled_sha256": sampled}


def sampled_sha256(file: Path) -> str:
    """Return the sha256 of 64 blocks of a file, evenly spaced from its beginning to its end.

    It takes milliseconds for a file of any size, and notices one that is cut, exchanged or
    rewritten, but not a few flipped bits between the blocks.
    """
    digest = hashlib.sha256()
    size = file.stat().st_size
    last = max(0, size - SAMPLED_BLOCK)
    is_small = size <= SAMPLED_BLOCKS * SAMPLED_BLOCK
    with file.open("rb") as stream:
        if is_small:
            digest.update(stream.read())
        else:
            for block in range(SAMPLED_BLOCKS):
                stream.seek(last * block // (SAMPLED_BLOCKS - 1))
                digest.update(stream.read(SAMPLED_BLOCK))
    return digest.hexdigest()


def _move(temporary: Path, folder: Path) -> None:
    """Move a finished folder to its place, after moving an older one away."""
    temporary.chmod(0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        folder.replace(old)
        shutil.rmtree(old)
    try:
        temporary.replace(folder)
    except OSError as error:
        # Another process may have finished the same folder first. The manifest is written last, so
        # a folder with one is complete.
        is_taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        if not is_taken or not (folder / "manifest.json").is_file():
            raise
