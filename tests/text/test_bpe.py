"""The plain byte pair encoding, on examples that can be checked by hand, and against the trainer of
`tokenizers`."""

import json
from pydoc_data.topics import topics

from tokenizers import pre_tokenizers

from seq2chat.text import bpe
from seq2chat.text.byte_bpe import ByteBPE

TEXT = (
    "low low low low low lower lower newest newest newest newest newest newest widest widest "
    "widest. " * 3
)
TEXT += (
    "Füße, 北京市北京市, 🙂🙂 ...\n\n\tif x == 42: return 'don''t'\r\n   aaaaaaa aaaa aa\n"
    + topics["assert"]
)


def token(text: str) -> int:
    return bpe.BYTE_TO_TOKEN[ord(text)]


def test_most_frequent_pair_is_merged_first():
    # "es" and "st" occur 9 times each (Sennrich et al.'s example); the tie goes to the smaller
    # token numbers.
    pieces = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    merges = bpe.train(pieces, 3)
    assert merges == [(token("e"), token("s")), (256, token("t")), (token("l"), token("o"))]


def test_encode_replays_merges_in_the_order_learned():
    a = token("a")
    b = token("b")
    c = token("c")
    assert bpe.encode(["abc"], [(b, c), (a, b)]) == [a, 256]
    assert bpe.encode(["abc"], [(a, b), (b, c)]) == [256, c]
    assert bpe.encode(["aaaaa"], [(a, a), (256, a)]) == [256, 257]


def test_a_pair_seen_once_is_not_merged():
    assert bpe.train(["xyz"], 10) == []
    assert bpe.train(["xyxy"], 10) == [(token("x"), token("y"))]


def test_alphabet_is_that_of_tokenizers():
    assert set(bpe.byte_alphabet().values()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(bpe.byte_alphabet().values()) == list(bpe.byte_alphabet().values())
    assert sorted(bpe.TOKEN_TO_BYTE) == list(range(256))


def test_the_trainer_learns_the_same_merges(tmp_path):
    """They come in the same order."""
    fast = ByteBPE.train([TEXT], 400)
    fast.save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    learned = [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]
    merges = bpe.train(fast.codec.split(TEXT), 400 - 260)
    assert len(merges) == 140
    assert merges == learned
    assert bpe.encode(fast.codec.split(TEXT), merges) == fast.encode(TEXT)
    assert bpe.decode(fast.encode(TEXT), merges).decode() == TEXT
