"""Two real processes have the losses of one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

RANK = Path(__file__).with_name("rank.py")
spec = importlib.util.spec_from_file_location("rank", RANK)
rank = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rank)


def test_two_tensor_ranks_have_the_losses_of_one_process(tmp_path):
    """The divided model computes in bfloat16 and the whole one in float32, hence the tolerance."""
    processes = [
        subprocess.Popen(
            [sys.executable, RANK, str(index), "2", str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    one = rank.train(rank.small_model())
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first == second
    for (loss, norm), (expected_loss, expected_norm) in zip(first, one, strict=True):
        assert loss == pytest.approx(expected_loss, rel=2e-3)
        assert norm == pytest.approx(expected_norm, rel=2e-2)
