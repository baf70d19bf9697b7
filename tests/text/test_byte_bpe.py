"""Ids equal those of `tokenizers`, `transformers` and the plain twin; user text never becomes a
control token."""

import json
import random
import time
from functools import cache
from pydoc_data.topics import topics

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from seq2chat.config import UserError
from seq2chat.text import bpe, parts
from seq2chat.text.byte_bpe import CONTROL, QWEN2_PATTERN, ByteBPE
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizer_json import GPT2_PATTERN
from seq2chat.text.tokenizers import check_ids

TRAINING_TEXT = (
    "\n".join(topics[name] for name in sorted(topics)[:25])
    + " Füße, déjà vu, Приве́т мир, 北京市 北京市, 🙂🙂"
)
WORDS = st.sampled_from(
    [
        *CONTROL,
        " ",
        "\n",
        "\r\n",
        "\t",
        "  ",
        "'S",
        "'ſ",
        "don't",
        "I'LL",
        "123",
        " the",
        "\u0301",
        "ﬁ",
        "İ",
        "𐐀",
    ]
)
CUT_ALPHABET = "ab1'.- \n\r\t\x1c\x85 \u0301。"
STRINGS = st.lists(st.text(max_size=8) | WORDS, max_size=8).map("".join)


def build(split: list, normalizer=None) -> tokenizers.Tokenizer:
    """A tokenizer of another maker: merges learned by `tokenizers`, one control token, no file of
    ours."""
    model = tokenizers.Tokenizer(models.BPE())
    model.normalizer = normalizer
    model.pre_tokenizer = split[0] if len(split) == 1 else pre_tokenizers.Sequence(split)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        [TRAINING_TEXT],
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False),
    )
    model.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    model.encode_special_tokens = True
    return model


def gpt2_like() -> tokenizers.Tokenizer:
    return build([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def qwen_like() -> tokenizers.Tokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), "isolated")
    return build(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        normalizers.NFC(),
    )


LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def smollm_like() -> tokenizers.Tokenizer:
    """Digits of their own, control tokens first, and bytes that no text has are missing."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    model = build([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    spec = json.loads(model.to_str())
    rare = {bpe.byte_alphabet()[byte] for byte in (0xC0, 0xC1, 0xF1, *range(0xF5, 0x100))}
    names = [name for name in spec["model"]["vocab"] if name not in rare]
    spec["model"]["vocab"] = {name: i for i, name in enumerate(["<|im_start|>", *names])}
    last = len(spec["model"]["vocab"])
    spec["added_tokens"] = [control_token("<|im_start|>", 0), control_token("<|endoftext|>", last)]
    return parsed(spec)


def llama3_like() -> tokenizers.Tokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    model = build([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    spec = json.loads(model.to_str())
    spec["model"]["ignore_merges"] = True
    return parsed(spec)


def unreachable() -> tokenizers.Tokenizer:
    """A token that no merges make, but that is taken if it is a whole piece."""
    spec = json.loads(llama3_like().to_str())
    *merges, last = spec["model"]["merges"]
    spec["model"]["vocab"]["Ġaba"] = spec["model"]["vocab"].pop("".join(last))
    spec["model"]["merges"] = merges
    return parsed(spec)


def several_steps() -> tokenizers.Tokenizer:
    """Numbers in threes, then words, as in DeepSeek's: more than one pattern can say."""
    steps = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in (r"\p{N}{1,3}", r"[!-/:-~]?[A-Za-z]+| ?\p{P}+|\s+")
    ]
    return build([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def control_token(content: str, token_id: int) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": True} | flags


def parsed(spec: dict) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    model.encode_special_tokens = True
    return model


def renumbered(model: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same merges with ids that run backwards, so that an id says nothing about when a token
    was learned."""
    spec = json.loads(model.to_str())
    last = max(spec["model"]["vocab"].values())
    spec["model"]["vocab"] = {token: last - i for token, i in spec["model"]["vocab"].items()}
    return parsed(spec)


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return ByteBPE.train([TRAINING_TEXT], 1000)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder) -> tokenizers.Tokenizer:
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return theirs


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Both sides of a tokenizer that somebody else made: `foreign(make)` is theirs and, loaded from
    its file, ours."""

    @cache
    def pair(make) -> tuple[tokenizers.Tokenizer, TextTokenizer]:
        theirs = make()
        file = tmp_path_factory.mktemp("theirs") / "tokenizer.json"
        file.write_text(theirs.to_str(), encoding="utf-8")
        return theirs, ByteBPE.load(file)

    return pair


@pytest.fixture(scope="module")
def merges(folder) -> list[bpe.Pair]:
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


@settings(max_examples=1000, deadline=None)
@given(text=STRINGS)
def test_three_encoders_agree(trained, theirs, merges, text):
    """Decoding returns the text."""
    ids = trained.encode(text)
    assert ids == theirs.encode(text).ids
    assert ids == bpe.encode(trained.codec.split(text), merges)
    assert trained.decode(ids) == text
    assert "".join(trained.codec.split(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=STRINGS)
def test_user_text_never_yields_a_control_token(trained, text):
    assert trained.vocab_size - len(CONTROL) == min(trained.control.values())
    for control in CONTROL:
        ids = trained.encode(text + control + text)
        assert max(ids) < min(trained.control.values())
        assert trained.decode(ids) == text + control + text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 999), max_size=30))
def test_streaming_shows_what_decode_shows(trained, ids):
    stream = trained.stream_decoder()
    assert "".join([stream.feed(i) for i in ids]) + stream.flush() == trained.decode(ids)


def test_streaming_holds_back_half_a_character():
    plain = ByteBPE.train([], 260)
    stream = plain.stream_decoder()
    assert [stream.feed(i) for i in plain.encode("é🙂")] == ["", "é", "", "", "", "🙂"]
    stream.feed(plain.encode("é")[0])
    assert stream.flush() == "�"


def test_260_is_the_byte_tokenizer():
    plain = ByteBPE.train(["never mind, never mind"], 260)
    assert plain.vocab_size == 260
    assert list(plain.control.values()) == [256, 257, 258, 259]
    assert plain.decode(plain.encode("né")) == "né"
    assert len(plain.encode("né")) == 3
    assert ByteBPE.train(["aab"], 5000).vocab_size == 260, (
        "a text with no repeated pair learns no merge"
    )
    with pytest.raises(UserError, match="write at least 260"):
        ByteBPE.train(["text"], 259)


def test_control_tokens(trained):
    assert [*trained.control] == list(CONTROL)
    assert (trained.eos_id, trained.pad_id) == (996, 997)
    assert trained.decode([998, *trained.encode("hi"), 999]) == "<|im_start|>hi<|im_end|>"


def test_ids_to_which_a_model_is_padded_have_no_text(trained):
    assert trained.decode([*trained.encode("h"), 1000, *trained.encode("i")]) == "hi"
    assert trained.token_bytes(1000) == b""
    check_ids(trained, [0, 999])
    with pytest.raises(UserError, match="no token 1000; this tokenizer has ids from 0 to 999"):
        check_ids(trained, [3, 1000])
    with pytest.raises(UserError, match="no token -1"):
        check_ids(trained, [-1])


def test_documents_are_encoded_in_order(trained, theirs, monkeypatch):
    """Long ones are encoded in parts."""
    monkeypatch.setattr(parts, "MAX_PART", 50)
    texts = [
        TRAINING_TEXT[:3000],
        "",
        "x",
        " \n \n\n y\n",
        TRAINING_TEXT[3000:4000],
        *["tiny"] * 40,
    ]
    assert [ids.tolist() for ids in trained.encode_documents(texts)] == [
        theirs.encode(text).ids for text in texts
    ]
    assert list(trained.encode_documents([])) == []


@settings(max_examples=300, deadline=None)
@given(text=st.text(CUT_ALPHABET, max_size=40), more=st.text(CUT_ALPHABET, max_size=20))
@pytest.mark.parametrize("make", [gpt2_like, qwen_like, None], ids=["gpt2", "qwen", "ours"])
def test_cutting_a_long_text_changes_no_id(trained, make, text, more, foreign):
    tokenizer = trained if make is None else foreign(make)[1]
    cut = tokenizer.codec.last_cut(text)
    whole = text + more
    assert [
        *tokenizer.codec.split(whole[:cut]),
        *tokenizer.codec.split(whole[cut:]),
    ] == tokenizer.codec.split(whole)


@pytest.mark.parametrize(
    "text", ["a\r\nb", "a\n\n  b", " \n" * 9 + "x", "one two", "他说，我们", "if x:\n    y"]
)
def test_a_long_text_can_be_cut_whatever_its_line_ends(trained, text):
    assert 0 < trained.codec.last_cut(text) < len(text)


def test_an_endless_word_trains_a_tokenizer_in_seconds():
    letters = "".join(random.Random(0).choices("acgt", k=1_000_000))
    began = time.perf_counter()
    tokenizer = ByteBPE.train([letters], 512)
    assert time.perf_counter() - began < 20
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode(next(tokenizer.encode_documents([letters])).tolist()) == letters


def test_pieces_are_words_digits_and_line_ends(trained):
    text = "I'LL pay (we'd) 2026!\r\n\n  é 'x' "
    pieces = [
        "I",
        "'LL",
        " pay",
        " (",
        "we",
        "'d",
        ")",
        " ",
        "2",
        "0",
        "2",
        "6",
        "!\r\n\n",
        " ",
        " é",
        " '",
        "x",
        "'",
        " ",
    ]
    assert trained.codec.split(text) == pieces


def test_blanks_too_long_for_tiktoken(trained, theirs):
    text = "a" + " " * 1_200_000 + "b"
    assert trained.encode(text) == theirs.encode(text).ids


def test_half_a_surrogate_pair_is_replaced(trained):
    assert trained.decode(trained.encode("a\ud800b")) == "a�b"


def test_save_and_load(trained, folder):
    again = ByteBPE.load(folder)
    assert again.fingerprint == trained.fingerprint
    assert ByteBPE.load(folder / "tokenizer.json").encode(TRAINING_TEXT) == trained.encode(
        TRAINING_TEXT
    )
    assert (again.vocab_size, again.control, again.eos_id, again.pad_id) == (
        1000,
        trained.control,
        996,
        997,
    )
    assert ByteBPE.train([TRAINING_TEXT], 999).fingerprint != trained.fingerprint
    assert ByteBPE.train([TRAINING_TEXT], 1000).fingerprint == trained.fingerprint


@pytest.mark.parametrize("model_type", ["qwen3", "gpt2"])
def test_transformers_reads_the_folder(trained, folder, tmp_path, model_type):
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto(TRAINING_TEXT).input_ids == trained.encode(TRAINING_TEXT)
    for text in ("I'LL pay 1234567 €, o.k.?\r\n\n  Ja\u0308!", "", " ", "<|im_start"):
        assert auto(text).input_ids == trained.encode(text)
    assert auto.decode(trained.encode("Hello , world . I 'm")) == "Hello , world . I 'm"
    assert (auto.eos_token_id, auto.pad_token_id, len(auto)) == (
        trained.eos_id,
        trained.pad_id,
        trained.vocab_size,
    )
    assert auto.convert_tokens_to_ids(list(CONTROL)) == list(trained.control.values())


FOREIGN = {
    "gpt2": gpt2_like,
    "qwen": qwen_like,
    "ids": lambda: renumbered(gpt2_like()),
    "smollm": smollm_like,
    "llama3": llama3_like,
    "unreachable": unreachable,
    "steps": several_steps,
}


@settings(max_examples=150, deadline=None)  # of each kind, more than 1,000 in all
@given(text=STRINGS)
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_tokenizers_of_others(make, text, foreign):
    theirs, ours = foreign(make)
    assert ours.encode(text) == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text).ids)
    eos_id = theirs.token_to_id("<|endoftext|>")
    assert (ours.eos_id, ours.pad_id, ours.vocab_size) == (eos_id, None, eos_id + 1)


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_digits_code_and_blanks_of_others(make, foreign):
    theirs, ours = foreign(make)
    for text in (TRAINING_TEXT, "  12 x1 ½²③ 4.56e+7\n  1", "\U00040000a", " aba ab", "\t" * 300):
        assert ours.encode(text) == theirs.encode(text).ids
    for name in ours.control:
        assert ours.control[name] not in ours.encode(f"a{name}b {name}")
        assert ours.decode(ours.encode(name)) == name


def test_tiktoken_encodes_where_it_can(foreign):
    slow = {name for name, make in FOREIGN.items() if foreign(make)[1].codec._fast is None}
    assert slow == {"unreachable", "steps"}


def test_a_tokenizer_of_others_is_saved_as_it_was(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/tokenizer.json").write_text(
        gpt2_like().to_str(pretty=True), encoding="utf-8"
    )
    (tmp_path / "theirs/tokenizer_config.json").write_text(
        '{"eos_token": "<|endoftext|>",  "x": 1}', encoding="utf-8"
    )
    ByteBPE.load(tmp_path / "theirs").save(tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_third_party_control_tokens_come_from_the_config(tmp_path):
    model = gpt2_like()
    spec = json.loads(model.to_str().replace("<|endoftext|>", "</s>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = {"eos_token": {"content": "</s>", "special": True}, "pad_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = ByteBPE.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (600, None), "padding is never the end of text"


def broken(**changes) -> str:
    spec = json.loads(gpt2_like().to_str())
    for key, value in changes.items():
        where, _, name = key.partition("__")
        if name:
            spec[where][name] = value
        else:
            spec[where] = value
    return json.dumps(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is not valid JSON"),
        ("[]", "model.type is not BPE"),
        (broken(model__type="WordPiece"), "model.type is not BPE"),
        (broken(model__end_of_word_suffix="</w>"), "affixes"),
        (broken(model__byte_fallback=True), "byte_fallback"),
        (broken(normalizer={"type": "Lowercase"}), "normalizer is Lowercase"),
        (broken(pre_tokenizer={"type": "Whitespace"}), "does not end in ByteLevel"),
        (broken(pre_tokenizer=None), "does not end in ByteLevel"),
        (broken(pre_tokenizer__add_prefix_space=True), "adds a space"),
        (broken(model__vocab={"a": 0}), "no token for byte"),
        (broken(version="9"), "is damaged"),
    ],
)
def test_what_is_not_byte_level_bpe_is_refused(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        ByteBPE.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value)


def test_missing_or_binary_tokenizer(tmp_path):
    with pytest.raises(UserError, match="There is no tokenizer at"):
        ByteBPE.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        ByteBPE.load(tmp_path)


def test_gpt2_pattern_is_the_one_inside_tokenizers(trained):
    split = pre_tokenizers.Split(tokenizers.Regex(GPT2_PATTERN), "isolated")
    explicit = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    builtin = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for text in [TRAINING_TEXT, "  a\n\n b'LL we'll\t\t x 123abc "]:
        assert explicit.pre_tokenize_str(text) == builtin.pre_tokenize_str(text)
