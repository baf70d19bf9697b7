"""Plain text is read in blocks of any size without a change, from any place, and a sample is spread
over all of it."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import UserError
from seq2chat.text import plain
from seq2chat.text.corpus import Corpus, load_corpus
from seq2chat.text.parts import Part
from seq2chat.text.plain import PlainText, Sample
from seq2chat.text.split import split_parts

TEXT = st.text("aé漢🙂 \n\r", max_size=60)


def plain_text(folder: Path, data: bytes) -> PlainText:
    file = folder / "text.txt"
    file.write_bytes(data)
    return PlainText(file)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(plain, "BLOCK", 5)


@settings(max_examples=200, deadline=None)
@given(text=TEXT, cut=st.integers(0, 100))
def test_two_ranges_cover_the_text_once(tmp_path_factory, text, cut):
    data = text.encode()
    cut = min(cut, len(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "BLOCK", 5)
        item = plain_text(tmp_path_factory.mktemp("plain"), data)
        halves = ["".join(part for part, _ in item.read(*ends)) for ends in ((0, cut), (cut, None))]
    # A line end of two bytes may be cut by the range, and each half is then a line end.
    before = data[:cut].decode(errors="ignore")
    expected = [before, text[len(before) :]]
    lines = [part.replace("\r\n", "\n").replace("\r", "\n") for part in expected]
    assert halves == [line if line.strip() else "" for line in lines]


def test_separators_end_documents_wherever_blocks_end(tmp_path, small_blocks):
    item = plain_text(
        tmp_path, b"one<|endoftext|>\ntwo <|endof text<|endoftext|><|endoftext|>three"
    )
    assert list(item.documents()) == ["one", "\ntwo <|endof text", "three"]


@pytest.mark.parametrize(
    "text", [" \n", "\n" * 12, f"\n{plain.SEPARATOR}\n\n\n\n\n\n{plain.SEPARATOR} "]
)
def test_a_blank_file_has_no_documents(tmp_path, small_blocks, text):
    assert list(plain_text(tmp_path, text.encode()).read()) == []
    with pytest.raises(UserError, match="is empty"):
        list(split_parts(load_corpus(str(tmp_path / "text.txt")), 0.0))


def test_blank_ends_and_beginnings_of_documents(tmp_path, small_blocks):
    """A blank end is not a document, and a blank beginning is kept."""
    item = plain_text(tmp_path, b"\n\n\n\n\n\n\na<|endoftext|>\n")
    assert list(item.documents()) == ["\n\n\n\n\n\n\na"]


def test_half_a_character_at_the_end_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not UTF-8 at byte 1"):
        list(plain_text(tmp_path, b"a\xe6\xbc").read())


def test_a_sample_is_spread_and_of_the_size_asked_for():
    for share in (0.001, 0.03, 0.5, 0.9):
        sample = Sample(share)
        taken = [unit for unit in range(10_000) if sample.takes()]
        assert abs(len(taken) - 10_000 * share) <= 1
        gaps = [after - before for before, after in zip([0, *taken], [*taken, 10_000], strict=True)]
        assert max(gaps) <= 2 / share + 1, "no stretch of the corpus is left out"


@pytest.mark.parametrize("name", ["big.txt", "big.txt.gz"])
def test_a_sample_has_all_languages_in_both_splits(tmp_path, name):
    text = "".join(f"{word} " * 200_000 for word in ("eins", "zwei", "三三", "four"))
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    corpus = load_corpus(str(tmp_path / name))
    assert corpus.n_characters == pytest.approx(len(text), rel=0.02)
    parts = list(split_parts(corpus, 0.5, 1_000_000))
    assert sum(len(part.text) for part in parts) == pytest.approx(1_000_000, rel=0.15)
    for split, words in (("train", ("eins", "zwei")), ("val", ("三三", "four"))):
        assert all(
            any(word in part.text for part in parts if part.split == split) for word in words
        )
    assert list(split_parts(corpus, 0.5, 1_000_000)) == parts


def test_a_sample_of_documents_takes_whole_ones():
    texts = [f"document {i}" for i in range(1_000)]
    corpus = Corpus("toy", lambda: texts, lambda: "digest")
    whole = list(split_parts(corpus, 0.2))
    some = list(split_parts(corpus, 0.2, 2_000))
    assert set(some) < set(whole)
    assert {part.split for part in some} == {"train", "val"}
    assert 1_500 < sum(len(part.text) for part in some) < 2_500


def test_plain_text_and_strings_are_split_alike(tmp_path):
    text = "The quick brown fox.\n" * 100
    (tmp_path / "a.txt").write_text(text)
    strings = split_parts(Corpus("toy", lambda: [text], lambda: ""), 0.1)
    assert join(split_parts(load_corpus(str(tmp_path / "a.txt")), 0.1)) == join(strings)


def join(parts: "list[Part]") -> dict[str, str]:
    texts = {"train": "", "val": ""}
    for part in parts:
        texts[part.split] += part.text
    return texts


def test_a_sample_of_few_large_documents_is_not_empty():
    corpus = Corpus(
        "books", lambda: ["words " * 10_000] * 150 + ["other " * 10_000] * 150, lambda: "digest"
    )
    parts = list(split_parts(corpus, 0.5, 1_000))
    assert {part.split for part in parts} == {"train", "val"}


def test_a_block_of_continuation_bytes_is_not_text(tmp_path):
    item = plain_text(tmp_path, b"x" * (plain.BLOCK - 1) + "é".encode())
    assert "".join(part for part, _ in item.sample(lambda: True)).startswith("xxx")


def test_no_cut_falls_into_a_separator(tmp_path):
    data = "añ<|endoftext|>b".encode()
    item = plain_text(tmp_path, data)
    for cut in range(len(data) + 1):
        halves = [[part for part, _ in item.read(*ends)] for ends in ((0, cut), (cut, None))]
        assert "".join(map("".join, halves)) == "añb", cut
