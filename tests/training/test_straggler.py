"""A process that makes the others wait is named, and those that wait are not."""

import json
import re
import time

import pytest
import torch
from torch import nn
from training.ranks import Run, train_together

from seq2chat.config import ParallelConfig, Recipe
from seq2chat.training import straggler
from seq2chat.training.straggler import Stopwatch, stragglers

DELAY = 0.1  # seconds per block, of two


@pytest.fixture(scope="module")
def events(tiny_tables, tmp_path_factory):
    """The events of runs of two processes, of which the second is delayed, by division."""
    root = tmp_path_factory.mktemp("runs")
    changes = {
        "model": {"dropout": 0.0},
        "train": {"budget": f"{2 * straggler.EVERY} steps", "samples": 0, "evals": 1},
    }
    recipe = Recipe.from_tables(tiny_tables, changes)
    sizes = {"shard": ParallelConfig(shard=2), "data": ParallelConfig(data=2)}
    runs = []
    for name, parallel in sizes.items():
        tables = recipe.tables() | {"parallel": vars(parallel)}
        runs.append(Run(root / name, Recipe.from_tables(tables), delay=DELAY))
    assert train_together(2, runs) == ["", ""]
    return {
        name: [json.loads(line) for line in (root / name / "events.jsonl").read_text().splitlines()]
        for name in sizes
    }


@pytest.mark.parametrize("division", ["shard", "data"])
def test_the_delayed_process_is_named_once_and_the_waiting_one_is_not(events, division):
    [event] = events[division]
    assert (event["event"], event["step"]) == ("straggler", straggler.EVERY)
    match = re.fullmatch(
        r"Process 1 on \S+ slows the others down: it computes ([\d.]+) times as long per step, "
        r"([\d.]+) s instead of ([\d.e-]+) s\.",
        event["sentence"],
    )
    times, own, other = map(float, match.groups())
    assert own >= 2 * DELAY
    assert other < DELAY  # the time for which process 0 waits is not counted
    assert times == pytest.approx(own / other, rel=0.1)


def test_the_slow_are_those_above_the_median_of_the_others():
    assert stragglers([1.0, 1.4]) == []
    assert stragglers([1.0, 1.6]) == [1]
    assert stragglers([5.0, 1.0, 1.2, 4.0, 1.1]) == [0, 3]
    assert stragglers([1.0] * 8) == []
    assert stragglers([0.005, 0.015]) == []  # which other programs decide


def test_only_training_is_timed_and_one_slow_step_does_not_count():
    block = nn.Linear(2, 2)
    watch = Stopwatch([block], torch.device("cpu"))
    block.eval()
    block(torch.ones(2))  # a validation
    block.train()
    for step in range(5):
        with watch.running():
            time.sleep(0.3 if step == 2 else 0.01)
        block(torch.ones(2))
        assert watch.after_step(step + 1) == []
    assert 0.01 <= watch._seconds() < 0.1
