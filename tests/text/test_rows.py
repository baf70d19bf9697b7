"""Rows come from every common format, a few at a time."""

import json
import sys
from pathlib import Path

import pytest

from seq2chat.config import UserError
from seq2chat.text import files
from seq2chat.text.rows import read_rows

ROWS = [{"n": 1, "text": 'one, and "more"'}, {"n": 2, "text": "two\nlines, ü and 🙂"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path, content: str | bytes = "") -> list[dict]:
    if content:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [row.fields for row in read_rows(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", "\ufeff" + LINES.replace("\n", "\r\n\r\n")),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=4)),
        ("a.jsonl", json.dumps(ROWS) + "\n"),
        ("a.jsonl", "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS)),
        ("a.jsonl", "".join(json.dumps([row]) + "\n" for row in ROWS)),
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_json_is_read_however_it_is_laid_out(tmp_path, monkeypatch, name, content, block):
    monkeypatch.setattr(files, "BLOCK", block)
    assert read(tmp_path / name, content) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv", "b.csv", "c.csv"])
def test_tables_name_their_fields_in_the_first_line(tmp_path, name):
    delimiter = {"a.tsv": "\t", "b.csv": ";", "c.csv": "\t"}.get(name, ",")
    cells = ["n", "text", "1", '"one, and ""more"""', "2", '"two\nlines, ü and 🙂"']
    lines = [delimiter.join(cells[i : i + 2]) for i in (0, 2, 4)]
    assert read(tmp_path / name, "\ufeff" + "\r\n".join(lines)) == [
        row | {"n": str(row["n"])} for row in ROWS
    ]


def test_a_cell_may_be_long(tmp_path):
    [row] = read(tmp_path / "a.csv", "text\n" + "long " * 100_000)
    assert len(row["text"]) == 500_000


def test_the_place_of_each_row_is_known(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n\n{\n"n": 2}\n{"n": 3}')
    assert [row.where.split(" of ")[0] for row in read_rows(tmp_path / "a.jsonl")] == [
        "Line 1",
        "Line 3",
        "Line 5",
    ]
    (tmp_path / "a.csv").write_text('n,text\n1,"one\ntwo"\n2,three\n')
    assert [row.number for row in read_rows(tmp_path / "a.csv")] == [2, 4]


def test_a_large_array_is_not_held(tmp_path, monkeypatch):
    held = []
    real = json.JSONDecoder.raw_decode

    def raw_decode(self, text, position):
        held.append(len(text))
        return real(self, text, position)

    (tmp_path / "a.json").write_text(json.dumps([{"text": "word " * 20}] * 20_000))
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", raw_decode)
    assert sum(1 for _ in read_rows(tmp_path / "a.json")) == 20_000
    assert max(held) < 4 * files.BLOCK
    assert len(held) < 21_000, "values are not parsed over and over"


@pytest.mark.parametrize(
    "row", ['{"text": "a", "text": "b"}', '{"messages": [{"text": "a", "text": "b"}]}']
)
def test_a_key_with_two_values_is_refused(tmp_path, row):
    with pytest.raises(
        UserError, match=r'Line 2 of .* has the key "text" twice with different values; keep one'
    ):
        read(tmp_path / "a.jsonl", '{"n": 1, "n": 1}\n' + row)


def test_parquet_is_read_in_batches(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    messages = [{"role": "user", "content": "Hello"}]
    parquet.write_table(
        pyarrow.table({"text": ["one", None], "messages": [messages, None]}), tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet") == [
        {"text": "one", "messages": messages},
        {"text": None, "messages": None},
    ]
    with pytest.raises(UserError, match=r"b\.parquet is not a Parquet file that can be read"):
        read(tmp_path / "b.parquet", b"PAR1 and nothing else")


def test_parquet_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'run: pip install "seq2chat\[parquet\]"'):
        read(tmp_path / "a.parquet", b"PAR1")
