"""Text in object storage is the text of local files, and every error of it is one sentence."""

import gzip
import hashlib
import json

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from seq2chat.config import Recipe, UserError
from seq2chat.text import remote
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.corpus import left_out, load_corpus
from seq2chat.text.shards import cached_shards, open_shards
from seq2chat.training.setup import with_absolute_paths

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


class Web(MemoryFileSystem):
    """As fsspec's files of web servers: they are taken to never change, and may lack a size."""

    protocol = ("https",)
    headers: dict = {}  # noqa: RUF012  # set by tests
    failure: Exception | None = None

    def ukey(self, path):
        return hashlib.sha256(path.encode()).hexdigest()

    def info(self, path, **_):
        entry = super().info(path)
        return {"name": path, "size": entry["size"], "type": entry["type"]} | self.headers

    def open(self, path, mode="rb", **options):
        stream = super().open(path, mode, **options)
        if self.failure is not None and mode == "rb":
            return Broken(self.failure)
        return stream

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("https://").partition("?")[0].lstrip("/")


class Broken:
    def __init__(self, failure):
        self.failure = failure

    def read(self, n):
        raise self.failure

    def seek(self, offset, whence=0):
        return offset

    def tell(self):
        return 0

    def close(self): ...


@pytest.fixture
def web(monkeypatch):
    fsspec.register_implementation("https", Web, clobber=True)
    remote._system.cache_clear()
    system = fsspec.filesystem("https")
    monkeypatch.setattr(Web, "headers", {})
    system.pipe("https://host/text.txt", b"The first text.")
    yield system
    system.rm("/host", recursive=True)
    fsspec.register_implementation(
        "https", "fsspec.implementations.http.HTTPFileSystem", clobber=True
    )
    remote._system.cache_clear()


@pytest.mark.parametrize("header", [None, "ETag", "Last-Modified"])
def test_a_changed_file_of_a_web_server_has_another_fingerprint(web, monkeypatch, header):
    def fingerprint(version):
        monkeypatch.setattr(Web, "headers", {header: version} if header else {})
        return load_corpus("https://host/text.txt").fingerprint

    before = fingerprint("1")
    assert fingerprint("1") == before
    web.pipe("https://host/text.txt", b"The other text.")  # of the same size
    assert fingerprint("2") != before


def test_the_query_of_an_address_is_not_part_of_its_suffix(web):
    web.pipe("https://host/rows.jsonl.gz", gzip.compress(b'{"text": "In a row."}\n'))
    name = "https://host/rows.jsonl.gz?download=true&key=" + "k" * 300
    assert list(load_corpus(name).documents()) == ["In a row."]
    # Such an address is longer than the name of any file.
    assert left_out(name) == ""
    recipe = with_absolute_paths(Recipe.from_tables({"data": {"corpus": name}}))
    assert recipe.data.corpus == name


def test_an_error_while_reading_and_a_missing_size_are_one_sentence(web, monkeypatch):
    corpus = load_corpus("https://host/text.txt")
    monkeypatch.setattr(Web, "failure", RuntimeError("Server disconnected"))
    with pytest.raises(UserError, match=r"text\.txt cannot be read: Server disconnected"):
        list(corpus.documents())
    monkeypatch.setattr(Web, "headers", {"size": None})
    with pytest.raises(UserError, match=r"text\.txt has no known size; download it"):
        _ = corpus.n_characters
