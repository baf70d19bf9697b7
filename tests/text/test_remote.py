"""Text in object storage is the text of local files, and every error of it is one sentence."""

import gzip
import json

import fsspec
import pytest

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.corpus import load_corpus
from seq2chat.text.shards import cached_shards, open_shards

LINES = "".join(json.dumps({"text": f"Line {i} of a text. " * 20}) + "\n" for i in range(300))
# Larger than a block that is read at once, with letters that blocks may cut.
PLAIN = "Größe und Maß, " * 20_000
FILES = {
    "rows.jsonl": LINES.encode(),
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "plain.txt": PLAIN.encode(),
    "plain.txt.gz": gzip.compress(PLAIN.encode()),
    "table.csv": b"text\nfirst\nsecond\n",
    "picture.png": b"\x89PNG",
}


@pytest.fixture
def stored(tmp_path):
    """The same files in memory, as on an object storage, and on the local disk."""
    memory = fsspec.filesystem("memory")
    for name, data in FILES.items():
        memory.pipe(f"/bucket/{name}", data)
        (tmp_path / name).write_bytes(data)
    yield memory
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", [name for name in FILES if name != "picture.png"])
def test_documents_are_those_of_a_local_file(stored, tmp_path, name):
    remote = load_corpus(f"memory://bucket/{name}")
    local = load_corpus(str(tmp_path / name))
    assert list(remote.documents()) == list(local.documents())
    assert remote.n_characters == local.n_characters


@pytest.mark.parametrize("characters", [0, 70_000])
def test_tokens_are_those_of_a_local_file(stored, tmp_path, characters):
    tokenizer = ByteBPE.train(["Line of a text"], 262)
    folders = [
        cached_shards(load_corpus(name), tokenizer, 0.1, tmp_path / kind, characters=characters)
        for kind, name in (
            ("remote", "memory://bucket/plain.txt"),
            ("local", str(tmp_path / "plain.txt")),
        )
    ]
    remote, local = (open_shards(folder, "train") for folder in folders)
    assert remote.fingerprint == local.fingerprint


def test_a_folder_and_a_pattern_are_several_files(stored, tmp_path):
    folder = load_corpus("memory://bucket")  # without the picture
    local = tmp_path / "folder"
    local.mkdir()
    for name, data in FILES.items():
        (local / name).write_bytes(data)
    assert list(folder.documents()) == list(load_corpus(str(local)).documents())
    rows = load_corpus("memory://bucket/rows.*")
    assert len(list(rows.documents())) == 600


def test_a_changed_file_has_another_fingerprint(stored):
    name = "memory://bucket/plain.txt"
    before = load_corpus(name).fingerprint
    assert load_corpus(name).fingerprint == before
    stored.pipe("/bucket/plain.txt", b"Other text.")
    assert load_corpus(name).fingerprint != before


def test_remote_and_local_texts_are_mixed(stored, tmp_path):
    corpus = load_corpus(f"memory://bucket/rows.jsonl:0.5, {tmp_path / 'table.csv'}:0.5")
    assert [part.name for part, _ in corpus.parts] == [
        "memory://bucket/rows.jsonl",
        str(tmp_path / "table.csv"),
    ]
    assert len(list(corpus.documents())) == 302


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory://bucket/none.txt", "There is no file memory://bucket/none.txt"),
        ("memory://bucket/none-*.txt", r"There is no file memory://bucket/none-\*"),
        ("nowhere://bucket/a.txt", "nowhere://bucket/a.txt cannot be read: Protocol not known"),
        ("s3://bucket/a.txt", "s3://bucket/a.txt needs a package .* run: pip install s3fs"),
    ],
)
def test_errors_are_one_sentence(stored, name, message, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)  # as if it were not installed
    with pytest.raises(UserError, match=message):
        load_corpus(name)


def test_a_file_that_vanishes_and_one_of_another_encoding_are_named(stored):
    corpus = load_corpus("memory://bucket/rows.jsonl")
    stored.rm("/bucket/rows.jsonl")
    with pytest.raises(UserError, match=r"There is no file memory://bucket/rows\.jsonl any more"):
        list(corpus.documents())
    stored.pipe("/bucket/old.txt", "Größe".encode("cp1252"))
    with pytest.raises(UserError, match=r"memory://bucket/old\.txt is not UTF-8 at byte 2"):
        list(load_corpus("memory://bucket/old.txt").documents())
