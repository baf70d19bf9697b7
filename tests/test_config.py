"""Recipes: strict reading, exact writing."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2chat.config import (
    GPT3,
    Budget,
    GPTConfig,
    Recipe,
    UserError,
    recipe_names,
    recipe_tables,
    to_toml,
)

text = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    prompt=text,
    corpus=text,
    lr=st.floats(0, allow_nan=False, allow_infinity=False),
    mask=st.booleans(),
)
def test_a_saved_recipe_is_read_back_equal(tmp_path_factory, prompt, corpus, lr, mask):
    tables = {
        "train": {"prompt": prompt},
        "data": {"corpus": corpus, "document_mask": mask},
        "optim": {"matrix_lr": lr},
    }
    recipe = Recipe.from_tables(tables)
    file = tmp_path_factory.mktemp("recipe") / "config.toml"
    recipe.save(file)
    assert Recipe.load(file) == recipe


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"optim": {"momentun": 1.0}}, ["optim.momentun", "Did you mean optim.momentum?"]),
        ({"optim": {"zzz": 1.0}}, ["optim.zzz", "[optim] knows matrices"]),
        ({"optin": {}}, ["[optin]", "Did you mean optim?"]),
        ({"train": {"sed": 3}}, ["train.sed", "Did you mean train.seed?"]),
        ({"train": {"seed": "one"}}, ["train.seed is 'one'", "int"]),
        ({"train": {"seed": True}}, ["train.seed is True", "int"]),
        ({"model": {"layout": "gpt5"}}, ["model.layout is 'gpt5'", "gpt2, modern"]),
        ({"model": {"preset": "gpt3-smal"}}, ["gpt3-smal", "Did you mean gpt3-small?"]),
        ({"model": {"d_model": 100, "n_head": 6}}, ["model.d_model 100", "model.n_head 6"]),
        ({"model": {"window": 8}}, ["model.window", "gpt2"]),
        ({"model": {"d_ff": -1}}, ["model.d_ff is -1"]),
        ({"model": {"dropout": 1.0}}, ["model.dropout is 1.0"]),
        (
            {"schedule": {"warmup": 0.7, "decay": 0.6}},
            ["schedule.warmup 0.7", "schedule.decay 0.6"],
        ),
        ({"train": {"budget": "ten minutes"}}, ["'ten minutes'", '"10m"']),
        ({"train": {"batch_size": 0}}, ["train.batch_size is 0"]),
        ({"tokenizer": {"vocab_size": 100}}, ["tokenizer.vocab_size is 100", "260"]),
        ({"data": {"val_fraction": 1.0}}, ["data.val_fraction is 1.0"]),
    ],
)
def test_a_mistake_is_named_with_what_to_write_instead(tables, words):
    with pytest.raises(UserError) as error:
        Recipe.from_tables(tables)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_later_layers_win_and_whole_numbers_become_floats():
    recipe = Recipe.from_tables({"optim": {"clip": 1, "momentum": 0.5}}, {"optim": {"clip": 2}})
    assert (recipe.optim.clip, recipe.optim.momentum) == (2.0, 0.5)
    assert type(recipe.optim.clip) is float


def test_preset_precedence():
    below, above = (
        {"model": {"n_layer": 3, "n_head": 3, "d_model": 33}},
        {"model": {"dropout": 0.5}},
    )
    model = Recipe.from_tables(below, {"model": {"preset": "gpt3-xl", "context": 64}}, above).model
    assert model == dataclasses.replace(GPT3["gpt3-xl"], context=64, dropout=0.5, vocab_size=0)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("10m", 600, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("2 hours", 7200, "seconds"),
        ("1 min", 60, "seconds"),
        ("500 steps", 500, "steps"),
        ("1 epoch", 1, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
        ("20M tokens", 20e6, "tokens"),
        ("1_000tokens", 1000, "tokens"),
        ("3Btokens", 3e9, "tokens"),
    ],
)
def test_budgets(text, amount, unit):
    assert Budget.parse(text) == Budget(float(amount), unit)


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-5m", "0m", "10 apples", "10mm", "10ms", "_s", "5 ss"]
)
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="not a length"):
        Budget.parse(text)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name):
    Recipe.from_tables(recipe_tables(name))


def test_derived_sizes():
    assert GPTConfig("gpt2", d_model=768, n_head=12).d_ff == 3072
    assert GPTConfig("modern", d_model=384, n_head=6).d_ff == 1024
    assert GPTConfig("modern", d_model=384, n_head=6).n_kv_head == 6


def test_toml_escapes_what_toml_forbids():
    assert to_toml({"t": {"k": 'a"b\\c\n\x7f'}}) == '[t]\nk = "a\\"b\\\\c\\n\\u007f"\n'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": {"shape": "cosine", "decay": 0.3}},
            "schedule.decay is 0.3, but schedule.shape is not",
        ),
        (
            {"optim": {"matrices": "adamw", "momentum": 0.5}},
            "optim.momentum is 0.5, but optim.matrices is not",
        ),
        (
            {"model": {"tie_embeddings": True}, "optim": {"head_lr": 0.1}},
            "optim.head_lr is 0.1, but the head is the",
        ),
        (
            {"model": {"layout": "gpt2", "rope_theta": 500.0}},
            "model.rope_theta is 500.0, but the gpt2 layout",
        ),
        (
            {"model": {"layout": "gpt2", "tie_embeddings": False}},
            "model.tie_embeddings is True, but the gpt2 layout",
        ),
        (
            {"align": {"method": "sft"}, "data": {"max_characters": 10}},
            "data.max_characters is 10, but alignment",
        ),
        (
            {"align": {"method": "sft"}, "train": {"start": "runs/a"}},
            "train.start is runs/a, but alignment starts",
        ),
        (
            {"optim": {"matrix_lr": float("inf")}},
            "optim.matrix_lr is inf in the recipe; write a finite number",
        ),
        ({"train": {"seed": 10**22}}, "write a number of at most 18 digits"),
        ({"tokenizer": {"vocab_size": 10**10}}, "write at most 1,000,000"),
    ],
)
def test_an_option_given_where_nothing_uses_it_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Recipe.from_tables({}, changes)


def test_complete_recipe_may_change_its_shape(tmp_path):
    """`config.toml` holds options that have no use beside its others; only what is given on top
    must have one."""
    cosine = Recipe.from_tables({"schedule": {"shape": "cosine"}, "optim": {"matrices": "adamw"}})
    cosine.save(tmp_path / "config.toml")
    assert Recipe.load(tmp_path / "config.toml", {"schedule": {"floor": 0.1}}).schedule.floor == 0.1
    assert Recipe.from_tables({"schedule": {"decay": 0.2}}, {"schedule": {"shape": "cosine"}})


# The table that version 0.1 wrote into every `config.toml`, whatever the method.
OLD_ALIGN = {
    "start": "",
    "reward": "",
    "examples": 0,
    "kl_target": 0.0,
    "ptx": 0.0,
    "ptx_batch": 8,
    "ptx_corpus": "",
    "episodes": 128,
    "group": 8,
    "inner_epochs": 1,
    "max_tokens": 32,
    "temperature": 1.0,
    "clip": 0.2,
    "value_clip": 0.0,
    "gae_lambda": 0.95,
    "missing_eos": 0.0,
    "ema": 0.0,
    "lora_rank": 0,
    "lora_alpha": 0.0,
    "strict": False,
}


@pytest.mark.parametrize(
    ("method", "beta"),
    [("", 0.0), ("sft", 0.0), ("reward", 0.0), ("dpo", 0.1), ("ppo", 0.02), ("grpo", 0.0)],
)
def test_runs_of_version_0_1_open(method, beta, tmp_path):
    old = tmp_path / "old.toml"
    old.write_text(to_toml({"align": {"method": method, "beta": beta} | OLD_ALIGN}))
    recipe = Recipe.load(old)
    assert recipe.method == method
    recipe.save(tmp_path / "new.toml")
    assert Recipe.load(tmp_path / "new.toml") == recipe


def test_an_option_of_another_method_is_refused():
    with pytest.raises(UserError, match=r"align\.group is for grpo; ppo has no use for it"):
        Recipe.from_tables({"align": {"method": "ppo", "group": 4}})
    with pytest.raises(UserError, match=r"align\.group is for grpo; without align\.method"):
        Recipe.from_tables({"align": {"group": 4}})
    with pytest.raises(UserError, match=r"Unknown option align.bata .*align\.beta"):
        Recipe.from_tables({"align": {"method": "ppo", "bata": 4}})
