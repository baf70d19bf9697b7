"""Sample k depends on the data, the seed and k alone, and an epoch asks for every transition
exactly once."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import UserError
from seq2chat.text.batch import IGNORED, Loader, evaluation_batches
from seq2chat.text.order import epoch_key, permute
from seq2chat.text.shards import Shards

EOS = 0


def stream(lengths: list[int], fingerprint: str = "data") -> Shards:
    """Return documents of the given lengths with distinct tokens, so that a token identifies its
    position."""
    starts = np.cumsum([0, *(n + 1 for n in lengths)]).astype(np.uint64)
    tokens = np.arange(int(starts[-1]) + 1, dtype=np.uint16)
    tokens[starts.astype(int)] = EOS
    n = sum(lengths)
    parts = [tokens[:5], tokens[5:11], tokens[11:]]
    return Shards(
        "train", fingerprint, "tokenizer", EOS, len(tokens), len(lengths), n, n, parts, starts[:-1]
    )


def text_of(shards: Shards) -> np.ndarray:
    return shards.read(0, shards.n_tokens)


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    lengths=LENGTHS, context=st.integers(1, 12), seed=st.integers(0, 2**40), epoch=st.integers(0, 3)
)
def test_every_transition_comes_once_per_epoch(lengths, context, seed, epoch):
    shards = stream(lengths)
    context = min(context, shards.n_tokens - 1)
    loader = Loader(shards, context, seed)
    seen: Counter[tuple[int, int]] = Counter()
    for k in range(epoch * loader.n_windows, (epoch + 1) * loader.n_windows):
        target, labels, _ = loader.sample(k)
        assert target.shape == labels.shape == (context,)
        asked = labels != IGNORED
        seen.update(zip(target[asked].tolist(), labels[asked].tolist(), strict=True))
    tokens = text_of(shards).tolist()
    assert seen == Counter(pairwise(tokens))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=st.integers(2, 12), k=st.integers(0, 200))
def test_inside_a_window_text_runs_on(lengths, context, k):
    shards = stream(lengths)
    context = min(context, shards.n_tokens - 1)
    target, labels, segments = Loader(shards, context, 0, document_mask=True).sample(k)
    tokens = text_of(shards)
    same = np.flatnonzero((labels[:-1] != IGNORED) & (segments[:-1] == segments[1:]))
    assert (labels[:-1][same] == target[1:][same]).all()
    # A segment begins where its document begins, or where the window does.
    begins = np.flatnonzero(np.diff(segments)) + 1
    assert (target[begins] == EOS).all()
    assert (np.diff(segments) >= 0).all()
    document = (
        np.searchsorted(
            shards.starts, np.flatnonzero(np.isin(tokens, target[target != EOS])), side="right"
        )
        - 1
    )
    assert set(segments[target != EOS] % shards.n_documents) == set(document)


@settings(max_examples=100, deadline=None)
@given(
    first=st.integers(0, 100),
    batch_size=st.integers(1, 12),
    world=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_ranks_together_have_the_global_batch(first, batch_size, world, seed):
    world = min(world, batch_size)
    loader = Loader(stream([30, 40, 50]), 8, seed)
    whole = loader.batch(first, batch_size)
    rows = torch.empty_like(whole.target), torch.empty_like(whole.labels)
    for rank in range(world):
        part = loader.batch(first, batch_size, rank, world)
        rows[0][rank::world] = part.target
        rows[1][rank::world] = part.labels
    assert torch.equal(rows[0], whole.target)
    assert torch.equal(rows[1], whole.labels)


def test_samples_do_not_depend_on_batches():
    """They do not depend on earlier samples either."""
    loader = Loader(stream([30, 40, 50]), 8, seed=3)
    rows = torch.cat([loader.batch(k, 4).target for k in range(0, 48, 4)])
    again = Loader(stream([30, 40, 50]), 8, seed=3)
    assert torch.equal(again.batch(17, 31).target, rows[17:48])
    assert torch.equal(again.batch(0, 48).target, rows)


def test_epochs_seeds_and_texts_have_different_orders():
    loader = Loader(stream([200]), 8, seed=0)
    n = loader.n_windows
    epoch = loader.batch(0, n).target
    assert not torch.equal(epoch, loader.batch(n, n).target)
    assert not torch.equal(epoch, Loader(stream([200]), 8, seed=1).batch(0, n).target)
    assert not torch.equal(epoch, Loader(stream([200], "other"), 8, seed=0).batch(0, n).target)
    assert torch.equal(epoch, Loader(stream([200]), 8, seed=0).batch(0, n).target)
    # The windows of two epochs begin at different places, not only in another order.
    assert set((epoch[:, 0] % 8).tolist()) != set((loader.batch(n, n).target[:, 0] % 8).tolist())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 64, 100, 1000])
def test_permute_is_a_permutation(n):
    assert sorted(permute(i, n, epoch_key("data", 0, 0)) for i in range(n)) == list(range(n))


def test_permutations_are_spread_evenly():
    """Of 6000 keys each of the 6 orders of 3 things gets its share; so does each place of each of
    10 things."""
    orders = Counter(
        tuple(permute(i, 3, epoch_key("x", 0, e)) for i in range(3)) for e in range(6000)
    )
    assert len(orders) == 6
    # Chi-squared, 5 degrees, p = 0.001.
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 20.5
    places = Counter(
        (i, permute(i, 10, epoch_key("x", 0, e))) for e in range(2000) for i in range(10)
    )
    # 81 degrees, p = 0.001.
    assert sum((places[i, j] - 200) ** 2 / 200 for i in range(10) for j in range(10)) < 126


def test_the_stream_is_closed_into_a_circle():
    shards = stream([4, 3])  # tokens 0 1 2 3 4 | 0 6 7 8 | 0: 9 transitions
    offsets = set()
    for seed in range(60):
        target, labels, segments = Loader(shards, 9, seed, document_mask=True).sample(0)
        offset = int(np.flatnonzero(labels == 1)[0])
        offsets.add(offset)
        assert np.roll(target, -offset).tolist() == [0, 1, 2, 3, 4, 0, 6, 7, 8]
        assert np.roll(labels, -offset).tolist() == [1, 2, 3, 4, 0, 6, 7, 8, 0]
        numbers = np.roll(segments, -offset)
        assert (numbers[:5] == numbers[0]).all() or offset > 4, "one document, one number"
        assert np.diff(segments).sum() == len(np.unique(segments)) - 1
        assert len(np.unique(segments)) == (2 if offset in (0, 4) else 3), (
            "a document met again has a new number"
        )
    assert offsets == set(range(9))


def test_documents_are_numbered_only_for_the_mask():
    shards = stream([30])
    assert Loader(shards, 8, 0).batch(0, 2).segments is None
    batch = Loader(shards, 8, 0, document_mask=True).batch(0, 2)
    assert batch.segments.shape == batch.target.shape == batch.labels.shape == (2, 8)
    assert batch.source is batch.source_mask is batch.target_mask is None


@pytest.mark.parametrize(("context", "batch_size"), [(4, 2), (7, 3), (100, 2), (1, 5)])
def test_evaluation_has_every_token_once_in_order(context, batch_size):
    shards = stream([9, 1, 14])
    batches = list(evaluation_batches(shards, context, batch_size, document_mask=True))
    labels = torch.cat([batch.labels.flatten() for batch in batches])
    target = torch.cat([batch.target.flatten() for batch in batches])
    segments = torch.cat([batch.segments.flatten() for batch in batches])
    tokens = torch.from_numpy(text_of(shards).astype(np.int64))
    assert torch.equal(labels[labels != IGNORED], tokens[tokens != EOS])
    assert int((labels != IGNORED).sum()) == shards.n_characters
    n = shards.n_tokens - 1
    assert torch.equal(target[:n], tokens[:-1])
    assert (target[n:] == EOS).all()
    assert (labels[n:] == IGNORED).all()
    assert torch.equal(segments[:n], (tokens[:-1] == EOS).cumsum(0) - 1)
    assert all(
        batch.target.shape[1] == context and batch.target.shape[0] <= batch_size
        for batch in batches
    )
    assert next(evaluation_batches(shards, context, batch_size)).segments is None


def test_text_shorter_than_the_context():
    shards = stream([10])
    assert Loader(shards, 11, 0).n_windows == 1
    message = r"The train text has 12 tokens, but model\.context is 12; .* at most 11\."
    with pytest.raises(UserError, match=message):
        Loader(shards, 12, 0)


def test_batch_moves_whole():
    batch = Loader(stream([30]), 8, 0, document_mask=True).batch(0, 2).to("meta")
    assert (
        batch.target.device.type == batch.labels.device.type == batch.segments.device.type == "meta"
    )
    assert batch.source is None


def test_a_limited_evaluation_is_spread_over_the_text():
    """Its beginning is a sample, too."""
    shards = stream([4000])
    limited = list(evaluation_batches(shards, 8, 4, limit=400))
    windows = [int(row[0]) // 8 for batch in limited for row in batch.target]
    assert len(windows) == len(set(windows)) == 50
    assert windows != sorted(windows)
    assert min(windows) < 100 and max(windows) > 400
    more = [
        int(row[0]) // 8
        for batch in evaluation_batches(shards, 8, 4, limit=800)
        for row in batch.target
    ]
    assert more[:50] == windows, "a smaller sample is the beginning of a larger one"
    every = list(evaluation_batches(shards, 8, 4, limit=10**6))
    assert sum(int((batch.labels != -100).sum()) for batch in every) == 4000
