"""Text in another encoding is refused with the command that converts it."""

import gzip
import io
import os
import shlex
import subprocess

import pytest

from seq2chat.config import UserError
from seq2chat.text.corpus import load_corpus
from seq2chat.text.files import open_bytes

SENTENCES = {
    "cp1252": "“It’s late”, he said – and left the café. ",
    "latin1": "Der schöne Bär läuft über die große Brücke. ",
    "cp1251": "Утром мы пили чай и читали газеты у окна. ",
    "koi8_r": "Утром мы пили чай и читали газеты у окна. ",
    "cp1250": "Późną jesienią żółte liście spadają na ścieżkę. ",
    "gbk": "早上我们在窗边喝茶看报纸，外面下着小雨。",
    "shift_jis": "朝、私たちは窓辺でお茶を飲みながら新聞を読みました。",
    "euc_jp": "朝、私たちは窓辺でお茶を飲みながら新聞を読みました。",
    "euc_kr": "아침에 우리는 창가에서 차를 마시며 신문을 읽었다. ",
    "utf_16_le": "We drank tea by the window. Мы пили чай. ",
    "utf_16_be": "We drank tea by the window. ",
    "utf_32": "We drank tea by the window. ",
    "utf_16": "We drank tea by the window. ",
}


@pytest.mark.parametrize("encoding", SENTENCES)
def test_the_advice_gives_the_right_text(tmp_path, encoding):
    text = SENTENCES[encoding] * 20
    file = tmp_path / "a text.txt"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="convert it") as error:
        list(load_corpus(str(file)).documents())
    command = str(error.value).split("convert it, for example: ")[-1].split("convert it: ")[-1]
    converted = subprocess.run(shlex.split(command)[:-2], capture_output=True, check=True).stdout
    assert converted.decode() == text


def test_the_advice_for_a_few_bad_bytes(tmp_path):
    """They are left out, and the rest stays UTF-8."""
    file = tmp_path / "a.txt"
    file.write_bytes("Über die Brücke. ".encode() * 20 + b"\xfe" + "Der Bär. ".encode())
    with pytest.raises(
        UserError,
        match=r"is not UTF-8 at byte 380; leave such bytes out: iconv -c -f UTF-8 -t UTF-8 ",
    ):
        list(load_corpus(str(file)).documents())


def test_a_bad_byte_is_found_wherever_the_blocks_end(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(('{"text": "' + "ü" * 70_001).encode() + b'\xe9"}')
    with pytest.raises(UserError, match=r"is not UTF-8 at byte 140012"):
        list(load_corpus(str(file)).documents())


def test_the_advice_for_a_compressed_file_unpacks_it(tmp_path):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress("Der schöne Bär. ".encode("latin1")))
    with pytest.raises(
        UserError, match=r"convert it, for example: gunzip -c .*a\.txt\.gz \| iconv -f CP1252 "
    ):
        list(load_corpus(str(file)).documents())


@pytest.mark.parametrize(
    "text", [b"hello\0", b"ab\0", "h\u00e9llo\0".encode(), b"one line\n" * 9 + b"\0"]
)
def test_a_zero_byte_in_a_short_text_is_not_utf_16(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(UserError, match="is a binary file"):
        list(load_corpus(str(tmp_path / "a.txt")).documents())


@pytest.mark.parametrize("text", ["hi\n", "\u00e9\n", "\u043c\u044b 1"])
def test_a_short_text_in_utf_16_is_known(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode("utf-16-le"))
    with pytest.raises(UserError, match="iconv -f UTF-16LE "):
        list(load_corpus(str(tmp_path / "a.txt")).documents())


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    "text", [b"hello \xe2\x98", b"hello \xf0\x9f\x99", "\u00fcber \u00fc".encode()[:-1]]
)
def test_a_text_that_is_cut_within_a_character(tmp_path, name, text):
    file = tmp_path / name
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(
        UserError, match="is not UTF-8 at byte 6: it ends within a character, so it is cut"
    ) as error:
        list(load_corpus(str(file)).documents())
    command = str(error.value).split("leave the end out: ")[1].removesuffix(" > new.txt")
    kept = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
    assert kept == text[:6]


def test_one_accented_last_letter_is_another_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("Un caf\u00e9".encode("latin1"))
    with pytest.raises(UserError, match="iconv -f CP1252 "):
        list(load_corpus(str(tmp_path / "a.txt")).documents())


def test_the_advice_for_a_twice_gzipped_file(tmp_path):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(gzip.compress(b"A text.")))
    with pytest.raises(UserError, match=r"holds a \.gz file; unpack it: ") as error:
        list(load_corpus(str(file)).documents())
    subprocess.run(str(error.value).split("unpack it: ")[1], shell=True, check=True)
    assert list(load_corpus(str(tmp_path / "a.txt")).documents()) == ["A text."]


def test_a_pipe_is_refused_in_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(
        UserError, match="is a pipe, which can be read only once; save it to a file first"
    ):
        list(load_corpus(str(tmp_path / "a.txt")).documents())


def test_an_error_without_a_system_message_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("A text.")
    with (
        pytest.raises(UserError, match=r"cannot be read: underlying stream"),
        open_bytes(tmp_path / "a.txt"),
    ):
        raise io.UnsupportedOperation("underlying stream is not seekable")
