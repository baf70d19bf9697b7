"""Corpora are read as they are, found by hash, and refused with one clear sentence."""

import dataclasses
import gzip
import hashlib
import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seq2chat.config import UserError
from seq2chat.text import corpus as module
from seq2chat.text.corpus import left_out, load_corpus
from seq2chat.text.named import NAMED, download


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(name: str, **options: str) -> list[str]:
    return list(load_corpus(name, **options).documents())


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "noextension"])
def test_a_text_file_is_one_whole_document(tmp_path, name):
    text = "Füße\n\n  two\u2028\ttabs 🙂\n"
    assert read(write(tmp_path / name, text)) == [text]
    assert read(write(tmp_path / name, "\ufeff" + text)) == [text], "a byte order mark is no text"
    assert read(write(tmp_path / name, text.replace("\n", "\r\n"))) == [text], (
        "a prompt has \\n only"
    )


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.json", "A.JSONL", "a.ndjson.gz"]
)
def test_jsonl_is_one_document_a_line(tmp_path, name):
    rows = [{"text": "one\u2028\nline"}, {"id": 2, "text": "two"}, {"text": " \n"}]
    path = write(tmp_path / name, jsonl(*rows) + "\n\n" + '{"text": "half \\ud800"}')
    assert read(path) == ["one\u2028\nline", "two", "half �"]


def test_jsonl_field_can_be_named(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "no", "body": "yes"}))
    assert read(path, field="body") == ["yes"]
    assert load_corpus(path).fingerprint != load_corpus(path, field="body").fingerprint


def test_a_folder_is_read_in_order_of_paths(tmp_path):
    write(tmp_path / "b.txt", "third")
    write(tmp_path / "a/z.jsonl", jsonl({"text": "first"}, {"text": "second"}))
    write(tmp_path / "c.txt.gz", "fourth")
    write(tmp_path / "d.txt", "")
    write(tmp_path / "e.md", "fifth")
    write(tmp_path / "f.TXT", "sixth")
    write(tmp_path / "g.py", "seventh = 7")
    write(tmp_path / "h.csv", "id,text\n1,eighth\n")
    write(tmp_path / ".hidden/x.txt", "never")
    write(tmp_path / "picture.png", b"\0")
    corpus = load_corpus(str(tmp_path))
    texts = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh = 7", "eighth"]
    assert list(corpus.documents()) == list(corpus.documents()) == texts


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path):
    write(tmp_path / "a.txt", "text")
    assert left_out(str(tmp_path)) == "" == left_out("tinyshakespeare")
    write(tmp_path / "b.pdf", b"%PDF")
    write(tmp_path / "sub/LICENSE", "words")
    line = left_out(str(tmp_path))
    assert (
        line.startswith("Left out of ")
        and "b.pdf, sub/LICENSE (2 in all). Convert .pdf to text." in line
    )


def test_settings_in_a_code_folder_are_left_out(tmp_path):
    """The warning names them."""
    write(tmp_path / "a.py", "a = 1")
    write(tmp_path / "data.csv", "id,value\n1,2\n")
    write(tmp_path / "list.json", "[1, 2]")
    write(tmp_path / "package.json", '{"name": "a"}')
    write(tmp_path / "rows.jsonl", jsonl({"text": "b"}))
    write(tmp_path / "tsconfig.json", '{\n  // strict\n  "strict": true\n}')
    assert read(str(tmp_path)) == ["a = 1", "b"]
    line = left_out(str(tmp_path))
    assert (
        "no field 'text': data.csv, list.json, package.json, tsconfig.json (4 in all). Name another"
        in line
    )
    assert read(str(tmp_path), field="name") == ["a = 1", "a"]
    assert "rows.jsonl" in left_out(str(tmp_path), "name") and "package.json" not in left_out(
        str(tmp_path), "name"
    )


def test_an_invalid_first_row_is_reported(tmp_path):
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "b.jsonl", "{text}")
    with pytest.raises(UserError, match=r"Line 1 of .*b\.jsonl is not valid JSON"):
        read(str(tmp_path))


def test_a_folder_of_rows_without_the_field_says_which(tmp_path):
    write(tmp_path / "a.jsonl", jsonl({"body": "a"}))
    with pytest.raises(UserError, match=r"holds no text.*have no field 'text': a\.jsonl"):
        load_corpus(str(tmp_path))


def test_fingerprint_is_of_the_contents(tmp_path):
    one = write(tmp_path / "one.txt", "text")
    two = write(tmp_path / "two.txt", "text")
    assert load_corpus(one).fingerprint == load_corpus(two).fingerprint
    write(tmp_path / "two.txt", "texT")
    assert load_corpus(one).fingerprint != load_corpus(two).fingerprint


def test_pydocs_are_the_topics_of_this_python():
    from pydoc_data.topics import topics

    corpus = load_corpus("pydocs")
    assert list(corpus.documents()) == [topics[name] for name in sorted(topics)]
    assert load_corpus("pydocs").fingerprint == corpus.fingerprint


ONE_MISTAKE = [
    ("empty.txt", "", "is empty"),
    ("blank.txt", " \n\t", "is empty"),
    ("blank.jsonl", jsonl({"text": ""}), "is empty"),
    ("binary.txt", b"\x01\x02\0\0", "is a binary file"),
    ("wide.txt", "text".encode("utf-16"), "is UTF-16; convert it"),
    ("latin.txt", "Grüße".encode("latin1"), r"is not UTF-8 at byte 2; convert it.*iconv"),
    ("latin.jsonl", jsonl({"text": "fine"}) + '{"text": "\xfc"}', None),
    (
        "bad.jsonl",
        jsonl({"text": "fine"}) + "{text}\n",
        r"Line 2 of .*bad\.jsonl is not valid JSON",
    ),
    ("list.jsonl", "[1]\n", r"Row 1 \(line 1\) of .* is not a JSON object"),
    (
        "other.jsonl",
        jsonl({"body": "x", "id": 1}),
        r"Line 1 of .* has no field 'text'; its fields are: body, id",
    ),
    ("number.jsonl", jsonl({"text": 3}), r"Line 1 of .* holds a int where text should be"),
    ("null.jsonl", jsonl({"text": "fine"}, {"text": None}), r"Line 2 of .*, field 'text', is null"),
    ("null.json", '[{"text": "fine"},\n{"text": null}]', r"Row 2 \(line 2\) of .* is null"),
    ("cut.json", '[{"text": "fine"},\n{"text": "fi', r"Row 2 \(line 2\) of .* is not valid JSON"),
    (
        "glued.json",
        '[{"text": "one"} {"text": "two"}]',
        r"Row 1 .* is not followed by a comma or a closing bracket",
    ),
    (
        "commas.jsonl",
        '{"text": "one"},\n{"text": "two"},\n',
        r"Line 1 of .* is not valid JSON \(a comma after",
    ),
    (
        "deep.jsonl",
        '{"text": "fine"}\n{"x": ' + "[" * 99_999 + "]" * 99_999 + "}",
        r"Line 2 of .* nested too deeply",
    ),
    (
        "digits.jsonl",
        '{"text": "fine", "id": ' + "9" * 6000 + "}",
        r"Line 1 of .* has a number of too many digits",
    ),
    (
        "short.csv",
        "id,text\n1,one\n2\n",
        r"Line 3 of .* has 1 fields, but the first line names 2: id, text",
    ),
    ("quote.csv", 'id,text\n1,"one\n', r"Line 2 of .* is not valid CSV \(unexpected end of data\)"),
    ("twice.csv", "text,text\n1,2\n", r"Line 1 of .* names a column twice"),
    (
        "bare.csv",
        "one,two\n1,2\n",
        r"Line 2 of .* has no field 'text'; its fields are: one, two\. Set data.field",
    ),
    (
        "pairs.tsv",
        "one\teins\ntwo\tzwei\n",
        'To learn translation from two columns, write model.family = "transformer"',
    ),
    (
        "page.html",
        "<p>text</p>",
        r"page\.html is a \.html file.*: pandoc -t plain .*page\.html -o page\.txt",
    ),
    ("book.PDF", b"%PDF-1.4", r"is a \.pdf file.*: pdftotext "),
    ("set.sgm", "<seg>text</seg>", r"is a \.sgm file.*: sed -n "),
    (
        "texts.zip",
        b"PK\x03\x04",
        r"is a \.zip file.*: unzip .* -d texts, then give the folder texts",
    ),
    ("renamed.txt", b"%PDF-1.4 and so on", r"is a \.pdf file by its content.*: pdftotext "),
    (
        "packed.txt",
        gzip.compress(b"text"),
        r"is a \.gz file by its content; rename it: mv .*packed\.txt\.gz",
    ),
    (
        "table.txt",
        b"PAR1\0\0",
        r"is a \.parquet file by its content; rename it: mv .*table\.txt\.parquet",
    ),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), ONE_MISTAKE, ids=[name for name, *_ in ONE_MISTAKE]
)
def test_mistakes_in_a_file_are_named(tmp_path, name, content, message):
    if message is None:
        content = content.encode("latin1")
        message = r"is not UTF-8 at byte 27;"
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert name in str(error.value)


def test_damaged_gzip(tmp_path):
    for name in ("a.txt.gz", "a.jsonl.gz"):
        path = Path(write(tmp_path / name, jsonl({"text": "long " * 1000})))
        for data in (path.read_bytes()[:-10], b"no gzip at all"):
            path.write_bytes(data)
            with pytest.raises(UserError, match=f"{name} is not a complete gzip file"):
                read(str(path))


def test_missing_file_suggests_what_is_near(tmp_path):
    write(tmp_path / "novel.txt", "text")
    with pytest.raises(
        UserError, match=r"no corpus or file .*novle\.txt\. Did you mean .*novel\.txt\?"
    ):
        load_corpus(str(tmp_path / "novle.txt"))
    with pytest.raises(UserError, match="Did you mean tinyshakespeare"):
        load_corpus("tinyshakespear")
    with pytest.raises(
        UserError, match=r"There is no corpus or file wikitext-2\. Did you mean wikitext-2-valid\?"
    ):
        load_corpus("wikitext-2")
    with pytest.raises(UserError, match="one of: pydocs, tinyshakespeare"):
        load_corpus(str(tmp_path / "xyz/qqq"))


def test_a_field_of_a_plain_text_is_refused(tmp_path):
    write(tmp_path / "novel.txt", b"Once upon a time.")
    with pytest.raises(
        UserError, match=r"novel.txt is not a file of rows by its suffix, so it has no field 'body'"
    ):
        load_corpus(str(tmp_path / "novel.txt"), "body")


def test_folder_without_text(tmp_path):
    write(tmp_path / "picture.png", b"\0")
    with pytest.raises(UserError, match=r"holds no text; put \.txt"):
        load_corpus(str(tmp_path))


@pytest.fixture
def served(tmp_path):
    """A folder and the address it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def pinned(served, tmp_path, monkeypatch):
    """A named corpus "toy" that can be downloaded into an empty cache."""
    folder, url = served
    write(folder / "toy.txt", "To be, or not to be\n" * 10_000)
    sha256 = hashlib.sha256((folder / "toy.txt").read_bytes()).hexdigest()
    toy = dataclasses.replace(
        NAMED["tinyshakespeare"], path="toy/toy.txt", sha256=sha256, url=f"{url}/toy.txt"
    )
    monkeypatch.setitem(module.NAMED, "toy", toy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEQ2CHAT_DATA", raising=False)
    return folder / "toy.txt", tmp_path / "cache/seq2chat/data/toy/toy.txt"


def test_named_corpus_is_downloaded_once(pinned):
    original, cached = pinned
    seen: list[tuple[int, int]] = []
    corpus = load_corpus("toy", progress=lambda done, total: seen.append((done, total)))
    assert cached.read_bytes() == original.read_bytes()
    assert [path.name for path in cached.parent.iterdir()] == ["toy.txt"]
    assert list(corpus.documents()) == [original.read_text(encoding="utf-8")]
    assert seen[-1] == (200_000, 200_000)
    assert len(seen) > 1
    original.unlink()
    assert load_corpus("toy").fingerprint == corpus.fingerprint


def test_given_folder_comes_first(pinned, tmp_path, monkeypatch):
    original, cached = pinned
    write(tmp_path / "given/toy/toy.txt", original.read_bytes())
    monkeypatch.setenv("SEQ2CHAT_DATA", str(tmp_path / "given"))
    load_corpus("toy")
    assert not cached.exists()


def test_a_changed_download_is_refused(pinned):
    original, cached = pinned
    original.write_text("something else", encoding="utf-8")
    with pytest.raises(UserError, match=r"toy\.txt has changed: its sha256 is"):
        load_corpus("toy")
    assert list(cached.parent.iterdir()) == []


def test_no_network_says_where_to_put_the_file(pinned):
    original, cached = pinned
    original.unlink()
    with pytest.raises(
        UserError, match=r"could not be downloaded .*; download it yourself and put it at"
    ) as error:
        load_corpus("toy")
    assert str(cached) in str(error.value)
    assert list(cached.parent.iterdir()) == []


def test_download_into_an_unwritable_place(pinned, tmp_path):
    original, _ = pinned
    with pytest.raises(UserError, match="could not be downloaded"):
        download(original.as_uri(), "0", tmp_path / "served/toy.txt/below/file")


def test_a_damaged_copy_is_named(pinned):
    _, cached = pinned
    write(cached, "cut short")
    with pytest.raises(
        UserError, match=r"is not the pinned toy: its sha256 is .*; remove or replace it"
    ) as error:
        load_corpus("toy")
    assert str(cached) in str(error.value)


def test_without_url_the_user_is_told_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SEQ2CHAT_DATA", raising=False)
    with pytest.raises(
        UserError, match=r"put it at gsm8k/train\.jsonl\.gz in a folder .* SEQ2CHAT_DATA"
    ):
        load_corpus("gsm8k")
    monkeypatch.setenv("SEQ2CHAT_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"put it at .*/data/gsm8k/train\.jsonl\.gz"):
        load_corpus("gsm8k")


def test_how_named_corpora_are_read(tmp_path):
    """The readers of the packed formats, on files of the same form."""
    gsm8k = Path(write(tmp_path / "g.jsonl.gz", jsonl({"question": "1+1?", "answer": "#### 2"})))
    assert list(NAMED["gsm8k"].read(gsm8k)) == ["1+1?\n#### 2"]
    dialog = "\n\nHuman: hi\n\nAssistant: hello"
    hh = Path(write(tmp_path / "h.jsonl.gz", jsonl({"chosen": dialog, "rejected": "no"})))
    assert list(NAMED["hh-rlhf"].read(hh)) == [dialog.strip()]
    lines = Path(write(tmp_path / "m.gz", "Ein Hund.\n\nZwei Hunde.\n"))
    assert list(NAMED["multi30k-de"].read(lines)) == ["Ein Hund.", "Zwei Hunde."]


def test_hugging_face_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r'hf:x needs the datasets package; run: pip install "seq2chat\[hub\]"'
    ):
        load_corpus("hf:x")


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    pytest.importorskip("datasets")
    write(tmp_path / "set/train.jsonl", jsonl({"text": "one"}, {"text": "two"}))
    corpus = load_corpus(f"hf:{tmp_path}/set")
    assert list(corpus.documents()) == list(corpus.documents()) == ["one", "two"]
    with pytest.raises(UserError, match="has no field 'body'; its fields are: text"):
        load_corpus(f"hf:{tmp_path}/set", field="body")
    with pytest.raises(UserError, match="could not be loaded"):
        load_corpus(f"hf:{tmp_path}/nothing")
    write(tmp_path / "gap/train.jsonl", jsonl({"text": "one"}, {"text": None}))
    with pytest.raises(UserError, match=r"Row 2 of hf:.*/gap, field 'text', is null"):
        list(load_corpus(f"hf:{tmp_path}/gap").documents())
