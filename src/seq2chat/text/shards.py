"""Tokenized text on disk: shards that are read in windows, and a manifest with the hash of every
file.

A split is one stream of tokens, `<|endoftext|> document <|endoftext|> document ... <|endoftext|>`.
It is cut into files `train-00000.bin`, `train-00001.bin`, ... of 16-bit tokens (32-bit for
vocabularies above 65,536). The file `train.index` holds the 64-bit position of the start of each
document.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seq2chat.config import check
from seq2chat.text.corpus import Corpus
from seq2chat.text.named import cache_folder, hash_file
from seq2chat.text.parts import Part
from seq2chat.text.shard_writer import (
    FORMAT,
    Progress,
    require_eos,
    sampled_sha256,
    token_dtype,
    write_shards,
)
from seq2chat.text.split import sample_fingerprint
from seq2chat.text.tokenizers import Tokenizer


class TokenFile:
    """The tokens of one file, read a slice at a time.

    This is not a memory map, which would count every page that was ever read as memory of the
    process. The file stays open, so that a run continues even if its cache is cleared.
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
        data = os.pread(self._descriptor, (stop - start) * size, start * size)
        return np.frombuffer(data, self.dtype)


@dataclass(frozen=True)
class Shards:
    """One split as a stream of `n_tokens` tokens.

    `starts` is the position of each document's leading `<|endoftext|>`, uint64 of shape
    `(n_documents,)`. `n_bytes` and `n_characters` measure the text without control tokens.
    `fingerprint` identifies the tokens and their tokenizer, whatever files they are in.
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


def cached_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    val_fraction: float,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    characters: int = 0,
) -> Path:
    """Return a folder with the shards of a corpus, tokenizer and split, after writing them if they
    don't exist.

    If `characters` is not 0, a sample of about that size is used. The folder is in
    `cache`, by default the user's cache folder.
    """
    if characters:
        text = sample_fingerprint(corpus, val_fraction, characters)
    else:
        text = corpus.fingerprint
    key = [FORMAT, text, tokenizer.fingerprint, val_fraction]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    slug = re.sub(r"[^\w.-]+", "-", Path(corpus.name).name)[:40]
    folder = Path(cache or cache_folder() / "shards") / f"{slug}-{digest}"
    if not (folder / "manifest.json").is_file():
        write_shards(
            corpus, tokenizer, folder, val_fraction, progress=progress, characters=characters
        )
    return folder


def open_shards(folder: str | Path, split: str) -> Shards:
    """Return one split of a folder made by `write_shards`.

    Raises UserError naming a file that is missing or has the wrong size or sampled hash. So it
    takes milliseconds however large the text is; `verify_shards` reads every byte.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    about = manifest["splits"][split]
    for entry in _entries(about):
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


def verify_shards(folder: str | Path) -> int:
    """Read all files of a folder made by `write_shards`, and return their size in bytes.

    Raises UserError naming the first one that is missing or has the wrong size or hash.
    """
    folder = Path(folder)
    size = 0
    for about in _read_manifest(folder)["splits"].values():
        for entry in _entries(about):
            file = folder / entry["name"]
            _check_file(file, entry)
            _check_hash(file, hash_file(file), entry["sha256"])
            size += entry["size"]
    return size


def shards_in_memory(
    texts: Iterable[str | Part], tokenizer: Tokenizer, name: str = "text"
) -> Shards:
    """Return the stream of `texts`, documents or parts of them, without writing it to disk.

    This is for evaluation on a text.
    """
    eos_id = require_eos(tokenizer)
    dtype = token_dtype(tokenizer)
    separator = np.array([eos_id], dtype)
    pieces: list[np.ndarray] = []
    starts: list[int] = []
    n_tokens = 0
    n_bytes = 0
    n_characters = 0
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
    stream_hash = hashlib.sha256(tokens.tobytes()).hexdigest()
    return Shards(
        name=name,
        fingerprint=_fingerprint(stream_hash, dtype.name, tokenizer.fingerprint),
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
    remedy = f"delete {file.parent} and tokenize the text again."
    check(file.is_file(), f"{file} is missing; {remedy}")
    size = file.stat().st_size
    check(
        size == entry["size"],
        f"{file} is damaged: it has {size} bytes instead of {entry['size']}; {remedy}",
    )
    _check_hash(file, sampled_sha256(file), entry["sampled_sha256"])


def _check_hash(file: Path, digest: str, expected: str) -> None:
    check(
        digest == expected,
        f"{file} is damaged: its sha256 is not the manifest's; delete {file.parent} and tokenize "
        "the text again.",
    )


def _entries(about: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of all files of a split in the manifest."""
    return [*about["files"], about["index"]]


def _fingerprint(stream_sha256: str, dtype: str, tokenizer: str) -> str:
    return hashlib.sha256(f"{stream_sha256} {dtype} {tokenizer}".encode()).hexdigest()
