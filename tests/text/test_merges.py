"""The merges that are shown lead from the bytes to the tokens of the encoder."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.merges import merge_steps
from seq2chat.text.text_tokenizer import TextTokenizer

TOKENIZER = ByteBPE.train(["Füße laufen, 北京市 and lower lowest newest widest. " * 20], 400)


@given(st.text(alphabet="Füße low erst\n北京市🙂1,", max_size=60))
def test_the_last_step_is_the_encoding(text):
    pieces = merge_steps(TOKENIZER, text)
    tokens = [token for steps in pieces for token in steps[-1]]
    assert tokens == [TOKENIZER.token_bytes(i) for i in TOKENIZER.encode(text)]
    for steps in pieces:
        assert all(len(token) == 1 for token in steps[0])
        assert all(b"".join(step) == b"".join(steps[0]) for step in steps)
        assert [len(step) for step in steps] == sorted({len(step) for step in steps}, reverse=True)


def test_whole_pieces_are_taken_where_the_tokenizer_takes_them():
    spec = json.loads(TOKENIZER.json)
    spec["model"]["ignore_merges"] = True
    spec["model"]["vocab"]["xyz"] = 777
    tokenizer = TextTokenizer(ByteBPE, json.dumps(spec), "{}")
    assert merge_steps(tokenizer, "xyz") == [[[b"x", b"y", b"z"], [b"xyz"]]]
    assert tokenizer.encode("xyz") == [777]


def test_endless_pieces_are_refused():
    with pytest.raises(UserError, match="a piece of 1000 bytes"):
        merge_steps(TOKENIZER, "a" * 1000)


def test_other_tokenizers_are_refused(monkeypatch):
    monkeypatch.setattr(TOKENIZER, "codec", None)
    with pytest.raises(UserError, match="Only byte-level BPEs"):
        merge_steps(TOKENIZER, "a")
