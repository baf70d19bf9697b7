"""Fifteen per cent, 80/10/10, and nothing but the data, the seed and k decides which."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import UserError
from seq2chat.text.batch import IGNORED
from seq2chat.text.masked import (
    MaskedLoader,
    encode_masked,
    fill,
    mask_tokens,
    masked_evaluation_batches,
)
from seq2chat.text.shards import shards_in_memory
from seq2chat.text.wordpiece import WordPiece

CONTEXT = 16
WORDS = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece.train([" ".join(WORDS * 2)], 300)


@pytest.fixture(scope="module")
def shards(tokenizer):
    chance = np.random.default_rng(0)
    return shards_in_memory([" ".join(chance.choice(WORDS, n)) for n in (300, 5, 200)], tokenizer)


@pytest.fixture(scope="module")
def loader(shards, tokenizer):
    return MaskedLoader(shards, CONTEXT, 1, tokenizer)


def restored(target, labels):
    """The row as it was before tokens were hidden."""
    return np.where(labels == IGNORED, target, labels)


def within(count, n, p, sigmas=4.5):
    """Whether a binomial count is where it should be; a false alarm comes once in about 150,000
    checks."""
    return abs(count - n * p) < sigmas * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_tokens_are_chosen_and_shown_as_the_paper_says(share):
    vocab_size = 5000
    mask_id = 4
    seq = 200
    tokens = np.full(seq, 100)
    is_text = np.arange(seq) % 2 == 0
    rng = np.random.default_rng(0)
    rows = 3000
    chosen = np.zeros(seq, dtype=int)
    shown = []
    for _ in range(rows):
        target, labels = mask_tokens(tokens, is_text, share, mask_id, vocab_size, rng)
        asked = labels != IGNORED
        assert asked.sum() == round(share * 100), "the number is exact"
        assert (target[~asked] == 100).all()
        assert (labels[asked] == 100).all()
        chosen += asked
        shown += target[asked].tolist()
    assert (chosen[~is_text] == 0).all()
    assert all(within(count, rows, share) for count in chosen[is_text]), "every place is as likely"
    shown = np.array(shown)
    random = (shown != mask_id) & (shown != 100)
    assert within((shown == mask_id).sum(), len(shown), 0.8)
    assert within(random.sum(), len(shown), 0.1)
    assert within((shown == 100).sum(), len(shown), 0.1)
    assert (
        abs(shown[random].mean() - vocab_size / 2)
        < 4.5 * vocab_size / 12**0.5 / random.sum() ** 0.5
    )
    assert shown[random].min() < 50
    assert shown[random].max() > vocab_size - 50


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 1), (3, 1), (9, 1), (10, 2), (100, 15)])
def test_at_least_one_token_is_asked_for(n, expected):
    _, labels = mask_tokens(
        np.arange(10, 10 + n), np.ones(n, dtype=bool), 0.15, 4, 50, np.random.default_rng(0)
    )
    assert (labels != IGNORED).sum() == expected


def test_an_epoch_has_every_token_in_its_rows(loader, shards, tokenizer):
    """Rows are [CLS] text [SEP]."""
    rows = []
    for k in range(loader.n_windows):
        target, labels, segments, is_next = loader.sample(k)
        row = restored(target, labels)
        assert (row[0], row[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
        assert (segments == 0).all()
        assert is_next
        assert not np.isin(labels, [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id]).any()
        n_text = (~np.isin(row, [tokenizer.cls_id, tokenizer.sep_id])).sum()
        assert (labels != IGNORED).sum() == max(1, round(0.15 * n_text))
        rows.append(row[1:-1])
    stream = shards.read(0, shards.n_tokens - 1)
    dealt = np.bincount(np.concatenate(rows), minlength=300)
    surplus = dealt - np.bincount(stream, minlength=300)
    assert (surplus >= 0).all()
    assert surplus.sum() == loader.n_windows * (CONTEXT - 2) - len(stream) < CONTEXT
    joined = " ".join(map(str, np.concatenate([stream, stream]).tolist()))
    assert all(" ".join(map(str, row.tolist())) in joined for row in rows), "a row is running text"


@settings(max_examples=30, deadline=None)
@given(
    first=st.integers(0, 100),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 4),
    both=st.booleans(),
)
def test_samples_depend_on_data_seed_and_k_alone(shards, tokenizer, first, batch_size, world, both):
    world = min(world, batch_size)
    batch = MaskedLoader(shards, CONTEXT, 3, tokenizer, next_sentence=both).batch(first, batch_size)
    again = MaskedLoader(shards, CONTEXT, 3, tokenizer, next_sentence=both)
    for rank in range(world):
        part = again.batch(first, batch_size, rank, world)
        for name, value in vars(part).items():
            if value is not None:
                assert torch.equal(value, getattr(batch, name)[rank::world]), name
    target, labels, _, _ = again.sample(first + batch_size - 1)
    assert batch.target[-1].tolist() == target.tolist()
    assert batch.labels[-1].tolist() == labels.tolist()


def test_masks_are_new_each_epoch_and_differ_by_seed(tokenizer):
    """Of 100 tokens 15 are hidden: that two rows hide the same ones is as good as impossible."""
    shards = shards_in_memory([" ".join(WORDS * 2)], tokenizer)
    loaders = [MaskedLoader(shards, 102, seed, tokenizer) for seed in range(3)]
    rows = [loader.sample(k) for loader in loaders for k in range(10 * loader.n_windows)]
    same_text = [
        labels
        for target, labels, _, _ in rows
        if tokenizer.sep_id not in restored(target, labels)[1:-1]
    ]
    places = {tuple(np.flatnonzero(labels != IGNORED)) for labels in same_text}
    assert len(places) == len(same_text) > 30


def test_what_the_loop_counts(loader):
    assert loader.epoch_batches(4) == loader.n_windows / 4
    assert loader.epoch_tokens == loader.n_windows * CONTEXT
    assert loader.n_samples(7, 4) == 4
    assert loader.fingerprint == loader.shards.fingerprint


def test_half_of_the_second_sentences_follow(shards, tokenizer):
    loader = MaskedLoader(shards, CONTEXT, 1, tokenizer, next_sentence=True)
    stream = shards.read(0, shards.n_tokens - 1)
    joined = " " + " ".join(map(str, np.concatenate([stream, stream]).tolist())) + " "
    n = 2000
    following = 0
    lengths = set()
    for k in range(n):
        target, labels, segments, is_next = loader.sample(k)
        row = restored(target, labels)
        cut = int(segments.argmax())
        assert (row[0], row[cut - 1], row[-1]) == (
            tokenizer.cls_id,
            tokenizer.sep_id,
            tokenizer.sep_id,
        )
        assert (np.diff(segments) >= 0).all()
        both = " ".join(map(str, [*row[1 : cut - 1], *row[cut:-1]]))
        if is_next:
            assert f" {both} " in joined
        following += is_next
        lengths.add(cut - 2)
    assert within(following, n, 0.5)
    assert lengths == set(range(1, CONTEXT - 3)), "each part has at least one token"
    batch = loader.batch(0, 4)
    assert batch.segments.shape == batch.target.shape == (4, CONTEXT)
    assert batch.is_next.dtype == torch.bool
    plain = MaskedLoader(shards, CONTEXT, 1, tokenizer).batch(0, 4)
    assert plain.segments is plain.is_next is plain.target_mask is None


@pytest.mark.parametrize(("context", "batch_size"), [(16, 4), (16, 1), (7, 3), (3, 8), (1000, 2)])
def test_evaluation_masks_fifteen_percent_of_the_stream(shards, tokenizer, context, batch_size):
    """It reads the stream once."""
    batches = list(masked_evaluation_batches(shards, context, batch_size, tokenizer))
    text = []
    for batch in batches:
        mask = (
            torch.ones_like(batch.target, dtype=torch.bool)
            if batch.target_mask is None
            else batch.target_mask
        )
        assert (batch.target[~mask] == tokenizer.pad_id).all()
        assert (batch.labels[~mask] == IGNORED).all()
        for target, labels, real in zip(
            batch.target.numpy(), batch.labels.numpy(), mask.numpy(), strict=True
        ):
            row = restored(target, labels)[real]
            assert (row[0], row[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
            text += row[1:-1].tolist()
            n_text = (~np.isin(row, [tokenizer.cls_id, tokenizer.sep_id])).sum()
            assert (labels != IGNORED).sum() == min(n_text, max(1, round(0.15 * n_text)))
    assert text == shards.read(0, shards.n_tokens - 1).tolist()
    again = masked_evaluation_batches(shards, context, 2 * batch_size, tokenizer)
    rows = [torch.cat([batch.target for batch in every]) for every in (batches, again)]
    assert torch.equal(*rows), "the batch size changes nothing"


def test_rooms_too_small_are_named(shards, tokenizer):
    with pytest.raises(UserError, match=r"model\.context is 3, which leaves no room for text"):
        MaskedLoader(shards, 3, 0, tokenizer)
    with pytest.raises(
        UserError, match=r"text has 20 tokens, but model\.context is 23; .* at most 22\."
    ):
        MaskedLoader(shards_in_memory([" ".join(WORDS[:19])], tokenizer), 23, 0, tokenizer)
    with pytest.raises(UserError, match="context is 2"):
        list(masked_evaluation_batches(shards, 2, 1, tokenizer))


def test_only_code_puts_a_mask_in_a_text(tokenizer):
    a = tokenizer.encode("ak")
    b = tokenizer.encode("bl")
    assert encode_masked("ak [MASK] bl", tokenizer) == [2, *a, 4, *b, 3]
    assert encode_masked("[MASK]ak[MASK]", tokenizer) == [2, 4, *a, 4, 3]
    with pytest.raises(UserError, match=r'There is no \[MASK\] in "ak bl"; write it'):
        encode_masked("ak bl", tokenizer)


def test_a_guess_stands_in_the_place_of_its_mask():
    assert fill("The [MASK] sees the [MASK].", 0, "cat") == "The cat sees the [MASK]."
    assert fill("The [MASK] sees the [MASK].", 1, "dog") == "The [MASK] sees the dog."
    assert fill("She is sing [MASK] now", 0, "##ing") == "She is singing now"
