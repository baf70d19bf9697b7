"""`kill -9`, SIGTERM and SIGINT on the real command, then resumption to the losses of the
uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import seq2chat

from seq2chat.config import Recipe, to_toml
from seq2chat.training.checkpoint import verify_checkpoint

COMMAND = [sys.executable, "-m", "seq2chat", "train"]
SLOW_DISK = """
import time
from seq2chat.cli import main
from seq2chat.training.saving import Saving

publish = Saving._publish
Saving._publish = lambda saving: (time.sleep(1), publish(saving))
main()
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def finish(*arguments: str) -> str:
    done = seq2chat("train", *arguments, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def begin(*arguments: str, command: list[str] = COMMAND) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, *arguments], env=environment(), stderr=subprocess.PIPE, text=True
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    file = folder / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [(m["step"], m["loss"]) for m in map(json.loads, lines) if "loss" in m]


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, (
            f"it ended before it could be killed: {process.stderr.read()}"
        )
        assert time.monotonic() < end
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def recipe(tiny_tables, tmp_path_factory):
    """60 steps over several epochs; wide enough for a checkpoint to take a while to write."""
    changes = {
        "model": {"d_model": 256, "n_layer": 2, "n_head": 4},
        "train": {"budget": "60 steps", "checkpoints": 12, "evals": 1, "samples": 0},
    }
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(to_toml(Recipe.from_tables(tiny_tables, changes).tables()))
    return str(file)


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(recipe, "--out", str(folder))
    return losses(folder)


def test_killed_and_resumed_twice_is_exact(recipe, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    at = random.SystemRandom().randint(10, 30)
    print(f"killed at step {at}")  # shown if the test fails
    process = begin(recipe, "--out", str(folder))
    wait_for(lambda: len(losses(folder)) >= at, process)
    process.kill()
    process.communicate()

    process = begin(str(folder), "--resume")
    step = max(losses(folder))[0]
    wait_for(
        lambda: any(folder.glob("checkpoints/.step-*.tmp")) and max(losses(folder))[0] > step,
        process,
    )
    process.kill()
    process.communicate()

    finish(str(folder), "--resume")
    assert losses(folder) == uninterrupted
    assert not list(folder.glob("checkpoints/.step-*.tmp"))


def test_compiled_training_with_dropout_resumes_exactly(recipe, tmp_path):
    compiled = [recipe, "--train.compile", "on", "--budget", "12 steps", "--model.n-layer", "1"]
    finish(*compiled, "--out", str(tmp_path / "whole"))
    process = begin(*compiled, "--out", str(tmp_path / "parts"))
    wait_for(lambda: len(losses(tmp_path / "parts")) >= 5, process)
    process.kill()
    process.communicate()
    assert "torch.compile on" in finish(str(tmp_path / "parts"), "--resume")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly(recipe, uninterrupted, tmp_path, number):
    folder = tmp_path / "run"
    process = begin(recipe, "--out", str(folder))
    wait_for(lambda: len(losses(folder)) >= 7, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "--resume" in said
    stopped = losses(folder)
    assert [p.name for p in sorted(folder.glob("checkpoints/*"))][-1] == f"step-{len(stopped):06d}"
    assert 7 <= len(stopped) < 60
    assert stopped == uninterrupted[: len(stopped)]


def test_killed_while_a_checkpoint_is_written_in_the_background(recipe, uninterrupted, tmp_path):
    """Steps are made while the checkpoint is written. SIGKILL leaves the one before, and no half of
    this one."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", SLOW_DISK, "train"]
    process = begin(recipe, "--out", str(folder), command=command)

    def unfinished() -> list[Path]:
        files = list(folder.glob("checkpoints/.step-*.tmp"))
        return [f for f in files if len(losses(folder)) > int(f.name[len(".step-") : -len(".tmp")])]

    wait_for(lambda: any(folder.glob("checkpoints/step-*/manifest.json")) and unfinished(), process)
    process.kill()
    process.communicate()
    [newest, *_] = sorted(folder.glob("checkpoints/step-*"), reverse=True)
    verify_checkpoint(newest)
    step = int(newest.name.removeprefix("step-"))
    assert f"at step {step}" in " ".join(finish(str(folder), "--resume").split())
    assert losses(folder) == uninterrupted
    assert not list(folder.glob("checkpoints/.step-*.tmp"))
