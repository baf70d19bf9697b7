"""Ids equal those of `transformers`; user text never becomes a control token; training is
reproducible."""

import json
import subprocess
import sys
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.shards import shards_in_memory
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import check_ids, load_tokenizer
from seq2chat.text.wordpiece import CONTROL, WordPiece

TRAINING_TEXT = (
    "\n".join(topics[name] for name in sorted(topics)[:8])
    + " Füße, déjà vu, Приве́т мир, 北京市 北京市, 🙂🙂"
)
WORDS = st.sampled_from(
    [*CONTROL, "##ing", " ", "\n", "\r\n", "\x00", "don't", "123", " the", "\u0301", "ﬁ", "İ", "北"]
)
STRINGS = st.lists(st.text(max_size=8) | WORDS, max_size=8).map("".join)


@pytest.fixture(scope="module")
def trained() -> WordPiece:
    return WordPiece.train([TRAINING_TEXT], 1000)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=500, deadline=None)
@given(text=STRINGS)
def test_ids_are_those_of_transformers(trained, theirs, text):
    ids = trained.encode(text)
    plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == plain
    if not any(control in text for control in CONTROL):
        assert theirs(text)["input_ids"] == [trained.cls_id, *ids, trained.sep_id]
    assert np.array_equal(np.concatenate(list(trained.encode_documents([text, text]))), ids + ids)


@settings(max_examples=300, deadline=None)
@given(text=STRINGS)
def test_user_text_never_yields_a_control_token(trained, text):
    forbidden = {trained.pad_id, trained.cls_id, trained.sep_id, trained.mask_id}
    for control in CONTROL:
        assert not forbidden & set(trained.encode(text + control + text))


def test_a_mask_that_somebody_typed_is_text(trained):
    assert trained.encode("[MASK]") == [
        *trained.encode("["),
        *trained.encode("mask"),
        *trained.encode("]"),
    ]


def test_transformers_knows_the_control_tokens(trained, theirs):
    assert [*trained.control.items()] == [
        ("[PAD]", 0),
        ("[UNK]", 1),
        ("[CLS]", 2),
        ("[SEP]", 3),
        ("[MASK]", 4),
    ]
    assert theirs.is_fast
    assert len(theirs) == trained.vocab_size == 1000
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(theirs, f"{name}_token_id") == getattr(trained, f"{name}_id")
    assert trained.eos_id == trained.sep_id
    pair = theirs("the function", "a class")
    first = trained.encode("the function")
    second = trained.encode("a class")
    assert pair["input_ids"] == [2, *first, 3, *second, 3]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_text_is_lowered_and_freed_of_accents(trained):
    assert trained.encode("Déjà VU") == trained.encode("deja vu")
    assert trained.decode(trained.encode("The FUNCTION, déjà vu.")) == "the function, deja vu."
    assert trained.decode([2, *trained.encode("the"), 4, 3]) == "[CLS] the [MASK] [SEP]"


def test_a_word_is_cut_into_its_longest_pieces(trained):
    """The greedy algorithm, spelled out: longest match first, each next piece with ## in front."""
    vocabulary = {trained.token(i): i for i in range(trained.vocab_size)}
    for word in ["functions", "unaffordable", "objectively", "x", "zzz"]:
        expected = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next(
                e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary
            )
            expected.append(vocabulary[prefix + word[start:end]])
            start = end
        assert trained.encode(word) == expected
    assert trained.encode("ꙮ") == [trained.unk_id]


def test_every_character_is_a_start_and_a_continuation(trained):
    tokens = {trained.token(i) for i in range(trained.vocab_size)}
    assert {"u", "##u", "п", "##п", "🙂", "##🙂"} < tokens
    assert trained.unk_id not in trained.encode(TRAINING_TEXT)


def test_training_is_the_same_in_every_process(trained):
    """`tokenizers` numbers continuations in the order of a hash table, which changes from one
    training to the next."""
    again = {WordPiece.train([TRAINING_TEXT], 1000).fingerprint for _ in range(4)}
    assert again == {trained.fingerprint}
    code = (
        "import sys; from seq2chat.text.wordpiece import WordPiece; t = "
        "WordPiece.train([sys.stdin.read()], 1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "; print(t.fingerprint)"],
        input=TRAINING_TEXT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == trained.fingerprint, done.stderr


def test_the_vocabulary_has_room_for_the_characters():
    assert WordPiece.train(["aab"], 5000).vocab_size == 5 + 4, (
        "a text with no repeated pair learns no merge"
    )
    with pytest.raises(
        UserError,
        match=r"vocab_size is 8; the text has 2 different characters, so write at least 9",
    ):
        WordPiece.train(["aab"], 8)


def test_the_round_trip_keeps_everything(trained, folder):
    loaded = WordPiece.load(folder)
    assert (
        loaded.fingerprint
        == trained.fingerprint
        == WordPiece.load(folder / "tokenizer.json").fingerprint
    )
    assert loaded.encode(TRAINING_TEXT) == trained.encode(TRAINING_TEXT)
    assert WordPiece.train(["other text, other text"], 100).fingerprint != trained.fingerprint


def test_published_files_pad_and_cut_nothing(trained, folder, tmp_path):
    """MiniLM's tokenizer.json says that texts are cut to 128 tokens and padded to as many."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    spec["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    published = WordPiece.load(tmp_path)
    assert published.encode(TRAINING_TEXT) == trained.encode(TRAINING_TEXT)
    assert published.encode("a") == trained.encode("a")


def test_shards_hold_sep_between_documents(trained):
    shards = shards_in_memory(["the function", "a\nclass", ""], trained)
    expected = [3, *trained.encode("the function"), 3, *trained.encode("a class"), 3, 3]
    assert shards.read(0, shards.n_tokens).tolist() == expected
    assert shards.eos_id == 3


def test_half_a_surrogate_pair_is_no_crash(trained):
    assert trained.encode("a\ud83d") == next(trained.encode_documents(["a\ud83d"])).tolist()
    assert WordPiece.train(["ab\ud83d"], 100).vocab_size > 5


def test_the_kind_of_a_file_decides_who_reads_it(folder, tmp_path):
    ByteBPE.train(["text"], 260).save(tmp_path)
    assert isinstance(load_tokenizer(folder), WordPiece)
    assert isinstance(load_tokenizer(tmp_path), TextTokenizer)
    with pytest.raises(UserError, match="is a BPE tokenizer; a BERT needs WordPiece"):
        WordPiece.load(tmp_path)
    with pytest.raises(UserError, match="There is no tokenizer at"):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "damaged tokenizer"),
        ('{"model": {"type": "Unigram"}}', "Unigram tokenizer"),
        ('{"model": {"type": "WordPiece"}}', "damaged"),
    ],
)
def test_what_is_no_tokenizer_is_refused(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        WordPiece.load(tmp_path)


def test_missing_control_tokens_are_an_error(folder, tmp_path):
    text = (folder / "tokenizer.json").read_text().replace("[MASK]", "<mask>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"has no token \[MASK\], which a BERT needs"):
        WordPiece.load(tmp_path)


def test_ids_to_which_a_model_is_padded_have_no_text(trained):
    assert trained.token_bytes(trained.mask_id) == b"[MASK]"
    assert (
        trained.token(1000),
        trained.token_bytes(1000),
        trained.decode([trained.mask_id, 1000]),
    ) == (
        "",
        b"",
        "[MASK]",
    )
    with pytest.raises(UserError, match="no token 1000; this tokenizer has ids from 0 to 999"):
        check_ids(trained, [1000])


@pytest.mark.parametrize("text", ["हिन्दी किताब है", "เป็นที่รัก"])
def test_vowel_signs_are_kept_where_they_spell_words(text):
    tokenizer = WordPiece.train([text] * 5, 300)
    assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "expected"),
    [
        (True, None, "cafe paris"),
        (True, False, "café paris"),
        (False, None, "Café Paris"),
        (False, True, "Cafe Paris"),
    ],
)
def test_case_and_accents_are_options(lowercase, strip_accents, expected):
    tokenizer = WordPiece.train(["Café Paris"] * 9, 300, lowercase, strip_accents)
    assert tokenizer.decode(tokenizer.encode("Café Paris")) == expected


def test_a_large_vocabulary_has_more_characters():
    letters = "".join(chr(0x4E00 + i) for i in range(4000))
    tokenizer = WordPiece.train([" ".join(letters)], 20_000)
    assert tokenizer.unk_id not in tokenizer.encode(letters)
