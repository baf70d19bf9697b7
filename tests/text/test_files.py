"""Text in another encoding is refused with the command that converts it."""

import gzip
import shlex
import subprocess

import pytest

from seq2chat.config import UserError
from seq2chat.text.corpus import load_corpus

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


def test_a_few_bad_bytes_are_left_out_and_the_rest_stays_utf8(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("Über die Brücke. ".encode() * 20 + b"\xfe" + "Der Bär. ".encode())
    with pytest.raises(UserError, match=r"is not UTF-8 at byte 380; leave such bytes out: iconv -c -f UTF-8 -t UTF-8 "):
        list(load_corpus(str(file)).documents())


def test_a_bad_byte_is_found_wherever_the_blocks_end(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(('{"text": "' + "ü" * 70_001).encode() + b'\xe9"}')
    with pytest.raises(UserError, match=r"is not UTF-8 at byte 140012"):
        list(load_corpus(str(file)).documents())


def test_the_advice_for_a_compressed_file_unpacks_it(tmp_path):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress("Der schöne Bär. ".encode("latin1")))
    with pytest.raises(UserError, match=r"convert it, for example: gunzip -c .*a\.txt\.gz \| iconv -f CP1252 "):
        list(load_corpus(str(file)).documents())
