"""A signal ends a run within seconds in every phase, and what it says is true."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from seq2chat.training.stop import Stopped, interruptible, nothing_to_lose, stop_on_signals

PATIENCE = 6  # seconds: two are promised on a machine that does nothing else


@pytest.fixture(scope="module")
def large_text(tmp_path_factory):
    """A text whose tokenizer takes long to train: no word is there twice."""
    rng = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "large.txt"
    words = ("".join(rng.choices("abcdefghijklmnop", k=rng.randint(4, 12))) for _ in range(400_000))
    file.write_text("\n".join(words))
    return file


def test_a_signal_raises_only_where_nothing_is_changed():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    with stop_on_signals() as stop, pytest.raises(Stopped), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def test_what_was_interrupted_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with stop_on_signals(), pytest.raises(Stopped), interruptible():
        torch.rand(5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert torch.equal(torch.rand(3), expected)


def test_preparation_restores_signal_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), nothing_to_lose():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before


def begin(folder, *arguments):
    command = [sys.executable, "-m", "seq2chat", "train", *arguments, "--out", str(folder / "run")]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_preparation_stops_at_once(tmp_path, large_text, number):
    process = begin(tmp_path, str(large_text), "--budget", "1h")
    # The imports are done, and reading has begun.
    while "machine:" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < PATIENCE
    assert process.returncode == 130
    assert "Nothing was trained yet" in said
    assert not (tmp_path / "run").exists()


def test_training_a_tokenizer_stops_at_once(tmp_path, large_text):
    words = large_text.read_text().split()
    larger = tmp_path / "larger.txt"
    larger.write_text("\n".join(letter + word for letter in "qrstuvwx" for word in words))
    command = [
        sys.executable,
        "-m",
        "seq2chat",
        "tokenizer",
        "train",
        str(larger),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        [*command, "--vocab-size", "200000"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(6)  # imports take less, even on a busy machine
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert time.monotonic() - began < PATIENCE
    assert (
        process.returncode == 130
        and "Nothing was written" in message
        and "Traceback" not in message
    )
    assert not (tmp_path / "out").exists()


def test_last_validation_stops_at_once(tmp_path, tiny_tables):
    text = tmp_path / "text.txt"
    text.write_text("The river runs to the sea, and the sea is wide.\n" * 200_000)
    flags = [
        "--data.val-fraction",
        "0.9",
        "--model.n-layer",
        "1",
        "--model.d-model",
        "64",
        "--model.n-head",
        "1",
        "--train.eval-tokens",
        "64",
    ]
    flags += [
        "--train.final-eval-tokens",
        "0",
        "--train.samples",
        "0",
        "--tokenizer.vocab-size",
        "260",
    ]
    process = begin(tmp_path, str(text), "--budget", "3 steps", *flags)
    metrics = tmp_path / "run" / "metrics.jsonl"
    manifest = tmp_path / "run" / "checkpoints" / "step-000003" / "manifest.json"
    while not manifest.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < PATIENCE
    assert process.returncode == 0
    assert "Trained to the end and saved" in said
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert rows[-1]["step"] == 3
    assert "loss" in next(row for row in rows if row["step"] == 3)
