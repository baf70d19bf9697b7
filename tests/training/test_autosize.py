"""The dial against its own rule: FLOPs spent, text repeated, shapes that fit together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2chat.config import Budget, Recipe, UserError
from seq2chat.device import Precision
from seq2chat.training.autosize import (
    MAX_PARAMETERS,
    choose_tables,
    fit_run,
    learning_rates,
    size_run,
)

sizes = st.integers(2_000, 10**10)
times = st.floats(30.0, 1e6)
speeds = st.floats(3e9, 3e14)


@given(sizes, times, speeds)
def test_every_choice_is_a_valid_recipe(characters, seconds, flops):
    tables = size_run(characters, Budget(seconds, "seconds"), flops)
    assert tables.pop("epochs") > 0
    recipe = Recipe.from_tables(tables)
    assert 512 <= recipe.tokenizer.vocab_size <= 8192
    assert 8 <= recipe.train.batch_size <= 64
    assert recipe.model.d_head == 64


@given(sizes, st.floats(30.0, 1e5), speeds)
def test_more_time_never_means_a_smaller_model_or_less_text(characters, seconds, flops):
    def weight(tables):
        return 12 * tables["model"]["n_layer"] * tables["model"]["d_model"] ** 2

    less, more = (
        size_run(characters, Budget(seconds, "seconds"), flops),
        size_run(characters, Budget(4 * seconds, "seconds"), flops),
    )
    assert weight(more) >= 0.7 * weight(less)  # rounding to whole layers and heads
    assert more["epochs"] >= less["epochs"] * 0.999
    assert more["model"]["dropout"] >= less["model"]["dropout"]


@pytest.mark.parametrize(
    ("amount", "unit", "epochs"), [(100.0, "steps", 100 * 4096), (1e6, "tokens", 1e6)]
)
def test_length_in_steps_fixes_the_epochs(amount, unit, epochs):
    one = size_run(1_000_000, Budget(1.0, "epochs"), 1e12)
    assert one["epochs"] == pytest.approx(1.0)
    text_tokens = 1_000_000 / (0.9 + 0.63 * 2)  # at a vocabulary of 1024
    assert size_run(1_000_000, Budget(amount, unit), 1e12)["epochs"] == pytest.approx(
        epochs / text_tokens
    )


def test_a_large_text_gets_twenty_tokens_for_each_parameter():
    tables = size_run(10**10, Budget(36_000.0, "seconds"), 1e15)
    model = tables["model"]
    parameters = 12 * model["n_layer"] * model["d_model"] ** 2
    tokens = 0.9 * 36_000 * 1e15 / 6 / parameters
    assert tokens / parameters == pytest.approx(20, rel=0.3)


def test_small_text_gets_few_parameters():
    model = size_run(100_000, Budget(1e6, "seconds"), 1e15)["model"]
    assert 12 * model["n_layer"] * model["d_model"] ** 2 < 1.5 * MAX_PARAMETERS * 100_000


def test_choices_are_told_and_follow_what_is_given(text_file):
    lines = []
    changes = {"model": {"d_model": 256}, "train": {"budget": "50 steps", "precision": "fp32"}}
    tables = choose_tables(str(text_file), changes, lines.append)
    Recipe.from_tables(tables, changes)
    assert tables["model"]["n_head"] == 4
    told = "\n".join(lines)
    assert all(
        word in told for word in ("GFLOP/s", "vocabulary 512", "budget 50 steps", "learning rate")
    )


def test_given_width_is_measured_with_its_heads():
    """On a fast machine the guess has many heads, which do not divide every width."""
    fast = Precision(torch.float32, 1e15, "")
    changes = {
        "model": {"d_model": 74, "n_layer": 1, "context": 16},
        "train": {"budget": "20 steps", "batch_size": 2},
    }
    tables = fit_run(10_000_000, Budget(20.0, "steps"), changes, torch.device("cpu"), fast)
    assert tables["model"]["n_head"] == 1
    assert tables["optim"] == learning_rates(2)


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({"data": {"source": "a.en", "target": "a.de"}}, "transformer"),
        ({"model": {"family": "seq2seq"}, "data": {"source": "a.en", "target": "a.de"}}, "seq2seq"),
        ({"model": {"family": "bert"}}, "bert"),
    ],
)
def test_other_families_borrow_a_recipe(changes, family):
    told, source = [], "" if "data" in changes else "my.txt"
    recipe = Recipe.from_tables(choose_tables(source, changes, told.append), changes)
    assert recipe.model.family == family
    assert recipe.expect.val_loss == 0  # which was that of another text
    assert recipe.data.source == changes.get("data", {}).get("source", "")
    assert recipe.data.corpus == (source or "pydocs")
    assert "from the recipe" in told[0]


def test_unknown_family_is_refused_first():
    told = []
    with pytest.raises(UserError, match=r"model\.family is 'nope'"):
        choose_tables("pydocs", {"model": {"family": "nope"}}, told.append)
    assert not told
