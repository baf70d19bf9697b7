"""A mixture has its shares at every prefix, and sample k depends on texts, shares, seed and k
alone."""

import json
import threading
from fractions import Fraction
from math import lcm

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import Recipe, UserError
from seq2chat.text.batch import Loader
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.mixed import MixedLoader, joined
from seq2chat.text.shards import shards_in_memory
from seq2chat.text.shares import map_names, mixture, schedule
from seq2chat.training.loop import train
from seq2chat.training.setup import resume_job, start_job
from seq2chat.training.types import Step


def quiet(line: str) -> None: ...


def shares_of(weights: list[int]) -> list[Fraction]:
    return [Fraction(weight, sum(weights)) for weight in weights]


def largest_error(order: np.ndarray, shares: list[Fraction]) -> Fraction:
    """Return the largest difference, in samples, of any prefix to the exact shares."""
    errors = []
    for text, share in enumerate(shares):
        counts = np.cumsum(order == text)
        errors += [abs(int(n) - share * k) for k, n in enumerate(counts, start=1)]
    return max(errors)


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.integers(1, 30), min_size=2, max_size=9))
def test_every_prefix_has_the_shares_within_one_sample(weights):
    shares = shares_of(weights)
    order = schedule(shares)
    assert len(order) == lcm(*(share.denominator for share in shares))
    assert largest_error(order, shares) <= 1 - Fraction(1, 2 * len(shares) - 2)
    counts = np.bincount(order, minlength=len(shares))
    assert counts.tolist() == [share * len(order) for share in shares]


def test_the_largest_deficit_alone_would_miss_a_share_by_more_than_a_sample():
    shares = shares_of([2, 3, 1, 1, 25, 3, 25, 1, 25])
    counts = [0] * len(shares)
    order = []
    for k in range(1, 87):
        deficits = [share * k - n for share, n in zip(shares, counts, strict=True)]
        order.append(deficits.index(max(deficits)))
        counts[order[-1]] += 1
    assert largest_error(np.array(order), shares) > 1
    assert largest_error(schedule(shares), shares) < 1


@pytest.fixture(scope="module")
def loaders():
    tokenizer = ByteBPE.train(["ab"], 260)
    texts = ["The river runs to the sea. " * 20, "abcdefgh" * 30, "0123456789" * 9]
    return [Loader(shards_in_memory([text], tokenizer), 16, seed=3) for text in texts]


def test_samples_of_each_text_come_in_its_own_order(loaders):
    mixed = MixedLoader(loaders, shares_of([5, 2, 1]))
    expected = [0, 0, 0]
    for k in range(200):
        text, number = mixed.place(k)
        assert number == expected[text]
        expected[text] += 1
        for a, b in zip(mixed.sample(k), loaders[text].sample(number), strict=True):
            assert np.array_equal(a, b)
    assert expected == [125, 50, 25]


def test_batches_and_ranks_do_not_change_samples(loaders):
    mixed = MixedLoader(loaders, shares_of([5, 2, 1]))
    whole = mixed.batch(1000, 24)
    again = MixedLoader(loaders, shares_of([5, 2, 1]))
    parts = torch.cat([again.batch(first, 8).target for first in (1000, 1008, 1016)])
    assert torch.equal(parts, whole.target)
    for rank in range(3):
        part = again.batch(1000, 24, rank, 3)
        assert torch.equal(part.target, whole.target[rank::3])
        assert torch.equal(part.labels, whole.labels[rank::3])


def test_other_shares_and_texts_have_other_fingerprints(loaders):
    one, other = (MixedLoader(loaders, shares_of(w)) for w in ([5, 2, 1], [5, 1, 2]))
    less = MixedLoader(loaders[:2], shares_of([5, 2]))
    assert len({one.fingerprint, other.fingerprint, less.fingerprint}) == 3
    assert one.fingerprint == MixedLoader(loaders, shares_of([10, 4, 2])).fingerprint


def test_joined_texts_are_read_across_their_ends(loaders):
    parts = [loader.shards for loader in loaders]
    whole = joined(parts)
    tokens = np.concatenate([part.read(0, part.n_tokens) for part in parts])
    assert np.array_equal(whole.read(0, whole.n_tokens), tokens)
    assert (tokens[whole.starts.astype(int)] == whole.eos_id).all()
    assert whole.n_bytes == sum(part.n_bytes for part in parts)


def test_names_of_mixtures():
    assert mixture("a.txt:0.7, hf:b:c:0.3") == [
        ("a.txt", Fraction(7, 10)),
        ("hf:b:c", Fraction(3, 10)),
    ]
    assert mixture("a:2,b:1") == [("a", Fraction(2, 3)), ("b", Fraction(1, 3))]
    # Longer than the name of any file.
    assert len(mixture(", ".join(f"{i}.txt:1" for i in range(60)))) == 60
    for single in ("world:20MB", "hf:a:b", "notes, old.txt", "a.txt"):
        assert mixture(single) == []
    assert map_names("a:0.5, b/c:0.50", str.upper) == "A:0.5, B/C:0.50"
    assert map_names("a.txt", str.upper) == "A.TXT"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt:0.7, b.txt", "'b.txt' has no weight in the mixture"),
        ("a.txt:0.7, b.txt:0", r"weight of b\.txt in the mixture .* is 0"),
        ("a.txt:0.7, a.txt:0.3", "names a text twice"),
        ("a.txt:0.1234567, b.txt:0.7", "too many digits"),
    ],
)
def test_mistakes_in_a_mixture_are_named(name, message):
    with pytest.raises(UserError, match=message):
        mixture(name)


@pytest.fixture(scope="module")
def names(text_file, tmp_path_factory):
    other = tmp_path_factory.mktemp("text") / "numbers.txt"
    other.write_text(" ".join(map(str, range(900))))
    return f"{text_file}:0.7, {other}:0.3", f"{text_file}:0.6, {other}:0.4"


def losses(folder) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(m["step"], m["loss"]) for m in map(json.loads, lines) if "loss" in m]


def run(job, stop_after=0) -> None:
    stop = threading.Event()
    for event in train(job, stop):
        if isinstance(event, Step) and event.step == stop_after:
            stop.set()


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_a_run_of_a_mixture_resumes_exactly(tiny_tables, names, tmp_path, family):
    changes = {"data": {"corpus": names[0]}, "model": {"family": family}}
    if family == "bert":
        changes["tokenizer"] = {"vocab_size": 120}
    recipe = Recipe.from_tables(tiny_tables, changes)
    lines = []
    job = start_job(recipe, tmp_path / "whole", lines.append)
    run(job)
    assert sum(" from " in line and "tokens of" in line for line in lines) == 2
    run(start_job(recipe, tmp_path / "parts", quiet), stop_after=13)
    run(resume_job(tmp_path / "parts", {}, quiet))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    with pytest.raises(UserError, match="has changed; put it back"):
        resume_job(tmp_path / "parts", {"data": {"corpus": names[1]}}, quiet)
