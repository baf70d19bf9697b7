"""Two processes align a model with the losses, scores and answers of one."""

import dataclasses
import threading

import pytest
from training.ranks import Run, metrics, train_together

from seq2chat.alignment.setup import prepare
from seq2chat.config import Recipe, recipe_tables
from seq2chat.training.loop import train
from seq2chat.training.setup import start_job

TRAIN = {
    "budget": "3 steps",
    "batch_size": 8,
    "precision": "fp32",
    "evals": 1,
    "checkpoints": 1,
    "samples": 0,
    "seed": 7,
}
REWARD = """
def score(prompts, answers):
    return [answer.count("e") - 0.1 * len(answer) for answer in answers]
"""
CHANGES = {
    "sft": {},
    "dpo": {},
    "reward": {},
    "ppo": {"episodes": 16, "ema": 0.9},
    "grpo": {"episodes": 16, "group": 4},
    "dpo-lora": {},
}
# Counted or timed, not computed.
OWN = ("seconds", "tokens_per_second", "peak_share")


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("aligned")
    (root / "reward.py").write_text(REWARD)
    runs = {}
    for name, changes in CHANGES.items():
        align = {"start": str(base), "examples": 60} | changes
        if name != "reward":
            align["max_tokens"] = 12
        if name in ("ppo", "grpo"):
            align["reward"] = f"{root / 'reward.py'}:score"
        options = {"train": TRAIN, "align": align, "data": {"corpus": "world"}}
        recipe = Recipe.from_tables(recipe_tables(name), options)
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0))
        runs[name] = recipe
        for _ in train(start_job(recipe, root / f"{name}-1", prepare=prepare), threading.Event()):
            pass
    together = [Run(root / f"{name}-2", recipe) for name, recipe in runs.items()]
    assert train_together(2, together) == [""] * len(together)
    return root


@pytest.mark.parametrize("name", CHANGES)
def test_two_processes_have_the_metrics_of_one(runs, name):
    one = metrics(runs / f"{name}-1")
    two = metrics(runs / f"{name}-2")
    assert [m["step"] for m in one] == [m["step"] for m in two] and len(one) == 4
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys()
        for key, value in b.items():
            # A variance isn't the mean of the variances of parts.
            if not any(word in key for word in (*OWN, "explained_variance")):
                assert a[key] == pytest.approx(value, abs=2e-5, rel=1e-4), (a["step"], key)
