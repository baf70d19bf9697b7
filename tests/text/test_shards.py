"""What is written is what is read, nothing half-written is ever read, and the split is the
documented one."""

import hashlib
import resource
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.corpus import Corpus, load_corpus
from seq2chat.text.parts import MAX_PART, Part
from seq2chat.text.shard_writer import (
    SAMPLED_BLOCK,
    SAMPLED_BLOCKS,
    sampled_sha256,
    write_shards,
)
from seq2chat.text.shards import cached_shards, open_shards, shards_in_memory, verify_shards
from seq2chat.text.split import split_parts, split_texts
from seq2chat.text.text_tokenizer import TextTokenizer


def corpus_of(texts: list[str]) -> Corpus:
    return Corpus("toy", lambda: texts, lambda: hashlib.sha256(repr(texts).encode()).hexdigest())


FEW = corpus_of(["Füße " * 20, "x", "The quick brown fox. " * 30])
MANY = corpus_of([f"Document number {i}, {'é' * (i % 7)}." for i in range(150)] * 2)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return ByteBPE.train(MANY.documents(), 300)


def test_one_document_is_split_as_nanogpt_does():
    text = "".join(chr(65 + i % 26) for i in range(1_001))
    halves = {part.split: part.text for part in split_parts(corpus_of([text]), 0.1)}
    assert halves == {"train": text[: int(len(text) * 0.9)], "val": text[int(len(text) * 0.9) :]}


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text("ab", min_size=1), min_size=1, max_size=5), share=st.floats(0.01, 0.99)
)
def test_of_few_documents_each_gives_its_end(texts, share):
    parts = list(split_parts(corpus_of(texts), share))
    assert "".join(part.text for part in parts) == "".join(texts)
    assert sum(len(part.text) for part in parts if part.split == "train") == sum(
        int(len(t) * (1 - share)) for t in texts
    )


def test_whole_documents_are_held_out():
    """Copies of a document are in the same split."""
    parts = list(split_parts(MANY, 0.2))
    assert [part.text for part in parts] == list(MANY.documents())
    train, val = (set(split_texts(MANY, 0.2, split)) for split in ("train", "val"))
    assert not train & val
    assert 0.1 < len(val) / 150 < 0.3
    more = set(split_texts(MANY, 0.4, "val"))
    assert val < more, "a larger share holds out the same documents and others"


@pytest.mark.parametrize("corpus", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("shard_tokens", [7, 64, 10**6])
def test_shards_hold_the_stream(tmp_path, tokenizer, corpus, shard_tokens):
    done: list[int] = []
    write_shards(corpus, tokenizer, tmp_path / "s", 0.2, shard_tokens, done.append)
    assert done[-1] == sum(map(len, corpus.documents()))
    for split in ("train", "val"):
        texts = list(split_texts(corpus, 0.2, split))
        stream: list[int] = []
        starts = []
        for text in texts:
            starts.append(len(stream))
            stream += [tokenizer.eos_id, *tokenizer.encode(text)]
        stream.append(tokenizer.eos_id)
        shards = open_shards(tmp_path / "s", split)
        assert shards.read(0, shards.n_tokens).tolist() == stream
        assert shards.starts.tolist() == starts
        assert (shards.n_tokens, shards.n_documents) == (len(stream), len(texts))
        assert shards.n_characters == sum(map(len, texts))
        assert shards.n_bytes == sum(len(text.encode()) for text in texts)
        assert all(len(part) == shard_tokens for part in shards.parts[:-1])
        for start, count in [(0, 1), (5, 9), (13, 30), (len(stream) - 1, 1), (3, 0)]:
            assert shards.read(start, count).tolist() == stream[start : start + count]
        in_memory = shards_in_memory(texts, tokenizer, split)
        assert in_memory.read(0, len(stream)).tolist() == stream
        assert in_memory.starts.tolist() == starts
        for name in (
            "fingerprint",
            "n_tokens",
            "n_documents",
            "n_bytes",
            "n_characters",
            "tokenizer",
            "eos_id",
        ):
            assert getattr(in_memory, name) == getattr(shards, name)


def test_fingerprint_is_of_tokens_and_tokenizer(tmp_path, tokenizer):
    write_shards(FEW, tokenizer, tmp_path / "a", 0.2, 7)
    write_shards(FEW, tokenizer, tmp_path / "b", 0.2)
    write_shards(FEW, tokenizer, tmp_path / "c", 0.3)
    a, b, c = (open_shards(tmp_path / name, "train") for name in "abc")
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.fingerprint != open_shards(tmp_path / "a", "val").fingerprint
    # Trained on text with nothing to merge, this one has other ids for <|endoftext|> only.
    other = ByteBPE.train(["ab ab"], 261)
    assert (
        shards_in_memory(["z"], other).fingerprint != shards_in_memory(["z"], tokenizer).fingerprint
    )


def test_16_bits_where_they_are_enough(tmp_path, tokenizer, monkeypatch):
    write_shards(FEW, tokenizer, tmp_path / "small", 0.2)
    assert open_shards(tmp_path / "small", "train").parts[0].dtype == np.uint16
    monkeypatch.setattr(tokenizer, "vocab_size", 65_537)
    write_shards(FEW, tokenizer, tmp_path / "large", 0.2)
    small, large = (open_shards(tmp_path / name, "train") for name in ("small", "large"))
    assert large.parts[0].dtype == np.uint32
    assert np.array_equal(small.read(0, small.n_tokens), large.read(0, large.n_tokens))


def damage(file) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00002.bin", "train.index"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, "is damaged: its sha256 is not the manifest's"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:-2]),
            r"is damaged: it has \d+ bytes instead of \d+",
        ),
        (lambda file: file.unlink(), "is missing"),
    ],
    ids=["bit", "cut", "gone"],
)
def test_a_damaged_file_is_named(tmp_path, tokenizer, name, harm, message):
    write_shards(FEW, tokenizer, tmp_path / "s", 0.2, 50)
    harm(tmp_path / "s" / name)
    with pytest.raises(UserError, match=message) as error:
        open_shards(tmp_path / "s", "train")
    assert name in str(error.value)
    open_shards(tmp_path / "s", "val")


def test_opening_samples_a_large_file_and_verifying_reads_it(tmp_path, tokenizer):
    """A flipped bit between the sampled blocks is only seen by a full check. Other text of the same
    size, a cut and zeros at any place are seen on opening."""
    rng = np.random.default_rng(0)
    words = [f"{i} {' '.join(map(str, rng.integers(0, 99_999, 500)))}" for i in range(400)]
    folder = tmp_path / "s"
    write_shards(corpus_of(words), tokenizer, folder, 0.2)
    file = folder / "train-00000.bin"
    data = file.read_bytes()
    assert len(data) > 3 * SAMPLED_BLOCKS * SAMPLED_BLOCK
    assert verify_shards(folder) == sum(
        f.stat().st_size for f in folder.iterdir() if f.name != "manifest.json"
    )
    gap = (len(data) - SAMPLED_BLOCK) // (SAMPLED_BLOCKS - 1)
    between = 5 * gap + SAMPLED_BLOCK + 100
    file.write_bytes(data[:between] + bytes([data[between] ^ 1]) + data[between + 1 :])
    open_shards(folder, "train")
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: its sha256"):
        verify_shards(folder)
    for start in (0, len(data) // 3, len(data) - gap):
        file.write_bytes(data[:start] + bytes(gap) + data[start + gap :])
        with pytest.raises(UserError, match=r"train-00000\.bin is damaged: its sha256"):
            open_shards(folder, "train")


def test_opening_reads_little_of_a_file(tmp_path, tokenizer):
    file = tmp_path / "large.bin"
    with file.open("wb") as stream:
        stream.truncate(10**11)  # 100 GB of holes; reading them would take a minute
    assert sampled_sha256(file) == hashlib.sha256(bytes(SAMPLED_BLOCKS * SAMPLED_BLOCK)).hexdigest()


def test_without_a_manifest_there_are_no_shards(tmp_path, tokenizer):
    write_shards(FEW, tokenizer, tmp_path / "s", 0.2)
    (tmp_path / "s/manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        open_shards(tmp_path / "s", "train")
    (tmp_path / "s/manifest.json").unlink()
    with pytest.raises(UserError, match="no finished shards"):
        open_shards(tmp_path / "s", "train")


def test_shards_are_reused_until_something_changes(tmp_path, tokenizer):
    first = cached_shards(FEW, tokenizer, 0.2, tmp_path)
    written = (first / "manifest.json").stat().st_mtime_ns
    assert cached_shards(FEW, tokenizer, 0.2, tmp_path) == first
    assert (first / "manifest.json").stat().st_mtime_ns == written
    other = ByteBPE.train(FEW.documents(), 290)
    changed = [(MANY, tokenizer, 0.2), (FEW, other, 0.2), (FEW, tokenizer, 0.3)]
    assert len({first, *(cached_shards(*key, tmp_path) for key in changed)}) == 4
    shutil.rmtree(first)
    assert cached_shards(FEW, tokenizer, 0.2, tmp_path) == first
    open_shards(first, "train")


def test_a_mistake_in_the_corpus_leaves_nothing_behind(tmp_path, tokenizer):
    text = tmp_path / "in" / "a.jsonl"
    text.parent.mkdir()
    text.write_text('{"text": "fine"}\n' * 200 + "{oops", encoding="utf-8")
    with pytest.raises(UserError, match="Line 201"):
        write_shards(load_corpus(str(text)), tokenizer, tmp_path / "out/s", 0.2)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_split_is_an_error(tmp_path, tokenizer):
    with pytest.raises(UserError, match="toy leaves no text in the train split; use a longer text"):
        write_shards(corpus_of(["x"]), tokenizer, tmp_path / "s", 0.5)
    with pytest.raises(UserError, match=r"no text in the val split; .*larger data\.val_fraction"):
        write_shards(corpus_of(["same text"] * 200), tokenizer, tmp_path / "s", 0.01)
    assert list(tmp_path.iterdir()) == []


def test_older_shards_are_replaced(tmp_path, tokenizer):
    """Other files are not."""
    write_shards(FEW, tokenizer, tmp_path / "s", 0.2, 7)
    write_shards(FEW, tokenizer, tmp_path / "s", 0.3)
    assert len(list((tmp_path / "s").glob("train-*.bin"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds files that are not shards"):
        write_shards(FEW, tokenizer, tmp_path / "mine", 0.2)
    assert (tmp_path / "mine/thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, tokenizer):
    long = corpus_of(["many words " * 20_000])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="The disk is full: there is no room for the shards in"):
            write_shards(long, tokenizer, tmp_path / "s", 0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_an_end_of_text(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "eos_id", None)
    with pytest.raises(UserError, match="no <\\|endoftext\\|>"):
        shards_in_memory(["text"], tokenizer)


def test_parts_of_documents_are_the_documents():
    tokenizer = ByteBPE.train(["ab"], 260)
    parts = [Part("a b", False), Part("c"), Part("d")]
    one = shards_in_memory(parts, tokenizer)
    other = shards_in_memory(["a bc", "d"], tokenizer)
    assert (
        one.fingerprint == other.fingerprint
        and one.starts.tolist() == other.starts.tolist() == [0, 5]
    )
    assert (one.n_bytes, one.n_characters, one.n_documents) == (5, 5, 2)


def test_a_tokenizer_is_trained_on_pieces_of_a_sample(tmp_path, monkeypatch, capsys):
    from seq2chat.cli import tokenizer as command

    file = tmp_path / "big.txt"
    file.write_text("The river runs to the sea.\n" * 1_000_000)
    read = []
    small = ByteBPE.train(["ab"], 260)
    monkeypatch.setattr(ByteBPE, "train", lambda texts, size: read.extend(map(len, texts)) or small)
    command.train(str(file), out=tmp_path / "out")
    assert 18_000_000 < sum(read) < 22_000_000
    assert max(read) <= MAX_PART
