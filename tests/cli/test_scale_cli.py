"""`seq2chat plan` and `seq2chat simulate` as users type them."""

import json

import pytest
from command import fail, succeed

SMALL = '[model]\nlayout = "gpt2"\ncontext = 64\nn_layer = 2\nn_head = 4\nd_model = 32\n'


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SMALL + '[train]\nbudget = "100 steps"\n[tokenizer]\nvocab_size = 300\n')
    return file


def test_a_plan_is_printed_and_marked():
    printed = succeed("plan", "gpt3-175b", "--gpus", "1024xA100", "--price", "2")
    assert "174,604,259,328" in printed
    assert "modelled, not measured" in printed
    tables = [line for line in printed.splitlines() if "modelled" in line]
    assert len(tables) == 6
    assert "cost at your prices" in printed


def test_json_holds_the_same_run():
    values = json.loads(
        succeed(
            "plan", "gpt3-175b", "--gpus", "1024xA100", "--tensor", 8, "--pipeline", 8, "--json"
        )
    )
    assert values["modelled"] is True
    assert values["layout"]["tensor"] * values["layout"]["pipeline"] == 64
    assert values["cost"] is None
    assert sum(values["step_seconds"].values()) == pytest.approx(
        values["layouts"][0]["step_seconds"]
    )


def test_this_machine_is_measured(recipe):
    printed = succeed("plan", recipe)
    assert "this machine" in printed
    assert "100 steps" in printed


def test_mistakes_are_one_sentence(recipe):
    assert "Did you mean H100?" in fail("plan", "gpt3-175b", "--gpus", "8xH101")
    assert "Did you mean gpt3-175b?" in fail("plan", "gpt3-174b", "--gpus", "8xH100")
    assert "more than the 72.0 GB" in fail("plan", "gpt3-175b", "--gpus", "8xH100")
    assert "multi30k-fixed is a seq2seq" in fail("plan", "multi30k-fixed", "--gpus", "8xH100")
    assert "4 heads cannot be divided" in fail("simulate", recipe, "--tensor", 3)
    assert "--shard is 0" in fail("simulate", recipe, "--shard", 0)


def test_a_rank_is_simulated(recipe):
    printed = succeed("simulate", recipe, "--shard", 2, "--tensor", 2, "--pipeline", 2)
    assert "all-gather, tensor" in printed
    assert "first of 2 stages, with 1 layers" in printed
    assert "Muon is not simulated" in printed
    values = json.loads(succeed("simulate", recipe, "--shard", 2, "--json"))
    assert {t["kind"] for t in values["traffic"]} >= {"all-gather", "reduce-scatter"}
