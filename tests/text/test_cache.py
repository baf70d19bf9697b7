"""The cache is listed and cleared, but not under a run that is writing it."""

import os
import shutil
import time
from pathlib import Path

import pytest

from seq2chat.cli.cache import clear, verify
from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.cache import cached
from seq2chat.text.corpus import load_corpus
from seq2chat.text.shards import cached_shards


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shards = tmp_path / "seq2chat" / "shards"
    for name in ("done-0", ".now-1.abc", ".killed-2.abc"):
        (shards / name).mkdir(parents=True)
        (shards / name / "train-00000.bin").write_bytes(b"1")
    for path in (
        shards / ".killed-2.abc" / "train-00000.bin",
        shards / ".killed-2.abc",
        shards / ".now-1.abc",
    ):
        os.utime(path, (time.time() - 90_000,) * 2)  # a run writes its files, not their folder
    return shards


def test_entries_in_use_are_kept(shards, capsys):
    downloads = shards.parent / "data" / "gsm8k"
    downloads.mkdir(parents=True)
    for name in ("train.jsonl.gz", "train.jsonl.gz.x1"):
        (downloads / name).write_bytes(b"1")
    clear()
    left = {"shards/.now-1.abc", str(Path("data", "gsm8k", "train.jsonl.gz.x1"))}
    assert {entry.name for entry in cached()} == left
    out = capsys.readouterr().out
    assert "Kept, because" in out and all(name in out for name in left) and "Deleted 3 of 5" in out


def test_named_entries_are_deleted(shards):
    clear("shards/.now-1.abc")
    assert {entry.name for entry in cached()} == {"shards/done-0", "shards/.killed-2.abc"}


def test_all_tokenized_texts_are_verified_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    verify()
    assert "no tokenized texts" in capsys.readouterr().out
    text = tmp_path / "text.txt"
    text.write_text("The river runs to the sea. " * 400)
    folder = cached_shards(load_corpus(str(text)), ByteBPE.train(["ab"], 260), 0.1)
    verify()
    assert f"shards/{folder.name}: 0.0 MB, intact" in capsys.readouterr().out
    file = folder / "val-00000.bin"
    file.write_bytes(bytes(file.stat().st_size))
    other = cached_shards(load_corpus(str(text)), ByteBPE.train(["ab"], 260), 0.2)
    shutil.copytree(other, other.with_name(f".{other.name}.x1"))  # left by a killed run
    (other.with_name(f".{other.name}.x1") / "val.index").unlink()
    with pytest.raises(UserError, match=rf"1 of 2 texts .* cache clear shards/{folder.name}$"):
        verify()
    out = capsys.readouterr().out
    assert "val-00000.bin is damaged" in out
    assert f"shards/{other.name}: 0.0 MB, intact" in out
