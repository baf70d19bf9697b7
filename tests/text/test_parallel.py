"""Parallel text: which pairs are read and held out, and how they are dealt."""

import gzip
import json
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import DataConfig, UserError
from seq2chat.text.batch import IGNORED
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.order import shuffled
from seq2chat.text.parallel import (
    PairLoader,
    Pairs,
    excerpt,
    load_parallel,
    pair_batches,
    read_pairs,
)

TOKENIZER = ByteBPE.train(["a man sees the dog", "ein Mann sieht den Hund"] * 3, 280)
LINES = [("a dog " * (i % 7 + 1) + str(i), "ein Hund " * (i % 5 + 1) + str(i)) for i in range(120)]


def write(folder, name, lines):
    file = folder / name
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pairs():
    return Pairs.encode(LINES, TOKENIZER, 1000)[0]


def test_files_of_unequal_length_are_rejected(tmp_path):
    """The error names both numbers of lines."""
    a = write(tmp_path, "a.en", ["one", "two", "three"])
    b = write(tmp_path, "a.de", ["eins", "zwei"])
    with pytest.raises(UserError, match=r"a\.en has 3 lines and .*a\.de has 2"):
        read_pairs(a, b)


def test_blank_lines_do_not_shift_the_others(tmp_path):
    a = write(tmp_path, "a", ["one", "", "three", "four"])
    b = write(tmp_path, "b", ["eins", "zwei", " ", "vier"])
    assert read_pairs(a, b) == ([("one", "eins"), ("four", "vier")], 2)


def test_gzip_and_a_missing_last_line_end_are_read(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\r\ntwo"))
    pairs, _ = read_pairs(tmp_path / "a.gz", write(tmp_path, "b", ["eins", "zwei"]))
    assert pairs == [("one", "eins"), ("two", "zwei")]


def test_text_that_is_not_parallel_is_rejected():
    """The error says what to write instead."""
    with pytest.raises(UserError, match=r"data.source and data.target.*multi30k-en-de"):
        load_parallel(DataConfig(corpus="tinyshakespeare"))
    with pytest.raises(UserError, match="belong together"):
        DataConfig(source="a.en")


ROWS = {
    "a.tsv": 'two men\tzwei Männer\n\tleer\n"Yes."\t"Ja."\n',
    "a.csv": 'source,id,target\ntwo men,1,zwei Männer\n,2,leer\n"""Yes.""",3,"""Ja."""\n',
    "b.csv": 'english,deutsch\ntwo men,zwei Männer\n,leer\n"""Yes.""","""Ja."""\n',
    "a.jsonl": "".join(
        json.dumps({"id": i, "translation": {"en": en, "de": de}}) + "\n"
        for i, (en, de) in enumerate(
            [("two men", "zwei Männer"), ("", "leer"), ('"Yes."', '"Ja."')]
        )
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_two_columns_of_a_table_are_pairs(tmp_path, name):
    (tmp_path / name).write_text(ROWS[name], encoding="utf-8")
    text = load_parallel(DataConfig(corpus=str(tmp_path / name)))
    assert text.train + text.val == [("two men", "zwei Männer"), ('"Yes."', '"Ja."')]
    assert text.n_blank == 1
    assert " → " in text.name


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.tsv",
            "one\teins\ntwo\tzwei\tdeux\n",
            r"Line 2 of .* has 3 columns .*: cut -f1,2 OLD\.tsv > NEW\.tsv",
        ),
        (
            "a.tsv",
            "one\n",
            "Line 1 of .* has 1 columns where a sentence, a tab and its translation should be",
        ),
        (
            "a.csv",
            "en,de,fr\na,b,c\n",
            "has the fields en, de, fr; keep two, the sentence first, or name them",
        ),
        (
            "a.jsonl",
            '{"en": "one", "de": "eins"}\n{"en": "two"}\n',
            "Line 2 of .* has no text in its field 'de'",
        ),
        ("a.tsv", "\t\n", "holds no pair of sentences"),
        ("a.sgm", "<seg>one</seg>", r"is a \.sgm file.*sed -n .*a\.sgm > a\.txt"),
    ],
)
def test_a_table_that_holds_no_pairs_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        load_parallel(DataConfig(corpus=str(tmp_path / name)))


def test_a_table_is_not_one_of_two_files(tmp_path):
    file = write(tmp_path, "a.tsv", ["one\teins"])
    with pytest.raises(
        UserError,
        match=r"is a table by its name.*seq2chat train .*a\.tsv --model.family .*cut -f1 ",
    ):
        read_pairs(file, file)


def test_the_advice_for_sgml_gives_its_sentences(tmp_path):
    file = tmp_path / "set.sgm"
    file.write_text(
        '<refset>\n<seg id="1"> One, two. </seg>\n<seg id="2">Three.</seg>\n</refset>\n'
    )
    with pytest.raises(UserError, match="convert it: ") as error:
        read_pairs(file, file)
    command = str(error.value).split("convert it: ")[1]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "set.txt").read_text() == "One, two.\nThree.\n"


def test_lines_of_old_macs_are_counted(tmp_path):
    (tmp_path / "a").write_bytes(b"one\r\rthree\r")
    assert read_pairs(tmp_path / "a", write(tmp_path, "b", ["eins", "zwei", "drei"])) == (
        [("one", "eins"), ("three", "drei")],
        1,
    )


def test_copies_of_a_pair_are_in_the_same_split(tmp_path):
    """Pairs are held out by the hash of their source."""
    lines = [f"sentence {i % 60}" for i in range(240)]
    source = write(tmp_path, "a", lines)
    target = write(tmp_path, "b", [str(i) for i in range(240)])
    text = load_parallel(DataConfig(source=str(source), target=str(target), val_fraction=0.3))
    assert len(text.train) + len(text.val) == 240
    assert 20 < len(text.val) < 150
    assert not {s for s, _ in text.train} & {s for s, _ in text.val}


def test_a_batch_holds_what_the_files_say(pairs):
    batch = pairs.batch([3, 0])
    for row, (source, target) in enumerate((LINES[3], LINES[0])):
        ids = TOKENIZER.encode(target)
        n = len(ids)
        end = TOKENIZER.eos_id
        assert batch.target[row, : n + 1].tolist() == [end, *ids]
        assert batch.labels[row, : n + 1].tolist() == [*ids, end]
        assert (batch.labels[row, n + 1 :] == IGNORED).all() and (
            batch.target[row, n + 1 :] == TOKENIZER.pad_id
        ).all()
        assert batch.source[row][batch.source_mask[row]].tolist() == [
            *TOKENIZER.encode(source),
            end,
        ]
        assert (batch.source[row][~batch.source_mask[row]] == TOKENIZER.pad_id).all()


@settings(deadline=None, max_examples=20)
@given(batch_size=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_pair_comes_once_per_epoch(pairs, batch_size, seed):
    """Batches have a bounded size."""
    loader = PairLoader(pairs, seed)
    budget = batch_size * loader.lengths.max(1).mean()
    for epoch in (0, 1):
        first = 0
        seen = []
        while first < len(pairs):
            n = loader.n_samples(epoch * len(pairs) + first, batch_size)
            batch = loader.batch(epoch * len(pairs) + first, batch_size)
            assert batch.target.shape[0] == n
            assert n == 1 or max(batch.target.numel(), batch.source.numel()) <= budget
            seen += [tuple(row[row != IGNORED].tolist()) for row in batch.labels]
            first += n
        assert first == len(pairs)
        assert sorted(seen) == sorted(
            (*target.tolist(), TOKENIZER.eos_id) for target in pairs.target
        )


def test_batches_are_a_function_of_data_seed_and_place(pairs):
    batch = PairLoader(pairs, 1).batch(0, 8)
    assert torch.equal(batch.target, PairLoader(pairs, 1).batch(0, 8).target)
    others = (PairLoader(pairs, 2).batch(0, 8), PairLoader(pairs, 1).batch(len(pairs), 8))
    assert all(
        batch.target.shape != other.target.shape or (batch.target != other.target).any()
        for other in others
    )


def test_ranks_share_a_batch_between_them(pairs):
    loader = PairLoader(pairs, 1)
    whole = loader.batch(0, 12)
    parts = [loader.batch(0, 12, rank, 3) for rank in range(3)]
    rows = sorted(tuple(row[row != IGNORED].tolist()) for part in parts for row in part.labels)
    assert rows == sorted(tuple(row[row != IGNORED].tolist()) for row in whole.labels)


def test_like_lengths_come_together(pairs):
    loader = PairLoader(pairs, 0)
    first = 0
    padding = 0
    real = 0
    while first < len(pairs):
        batch = loader.batch(first, 10)
        first += loader.n_samples(first, 10)
        padding = padding + int((batch.labels == IGNORED).sum())
        real = real + int((batch.labels != IGNORED).sum())
    assert padding < 0.05 * real


def test_validation_has_every_pair_once(pairs):
    labels = [row for batch in pair_batches(pairs, 7) for row in batch.labels]
    assert sorted(tuple(row[row != IGNORED].tolist()[:-1]) for row in labels) == sorted(
        map(tuple, pairs.target)
    )
    few = sum(int((batch.labels != IGNORED).sum()) for batch in pair_batches(pairs, 7, limit=100))
    assert 100 <= few < 100 + max(map(len, pairs.target)) + 1


def test_pairs_beyond_the_context_are_named():
    pairs, too_long = Pairs.encode([("a", "b"), ("a " * 50, "b")], TOKENIZER, 20)
    assert (len(pairs), too_long) == (1, [("a " * 50, "b")])
    assert excerpt(too_long) == f"“{'a ' * 20}…”"
    assert excerpt([("one", "eins")] * 4) == "“one”, “one”, “one”, …"
    with pytest.raises(UserError, match=r"more than the model's 2 tokens"):
        Pairs.encode([("a man", "ein Mann")], TOKENIZER, 2)


@given(n=st.integers(0, 300), key=st.binary(min_size=8, max_size=8))
def test_shuffled_is_a_permutation(n, key):
    assert sorted(shuffled(n, key)) == list(range(n))
    assert np.array_equal(shuffled(n, key), shuffled(n, key))
