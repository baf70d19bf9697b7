"""The run folder survives what a kill leaves, and the summary is the newest of each value."""

import json

import pytest

from seq2chat.config import UserError
from seq2chat.training.run_folder import RunFolder, list_runs, open_run, plot_runs


@pytest.fixture
def log(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    for step in range(1, 6):
        run.record({"step": step, "tokens": 10 * step, "loss": 5.0 - step})
    run.record({"step": 5, "tokens": 50, "val_loss": 0.5})
    return run


def test_a_line_cut_short_by_a_kill_is_left_out(log):
    with log.metrics_file.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [m["step"] for m in log.metrics()] == [1, 2, 3, 4, 5, 5]
    log.drop_after(5)
    log.record({"step": 6, "loss": 1.0})
    assert json.loads(log.metrics_file.read_text().splitlines()[-1]) == {"step": 6, "loss": 1.0}


def test_forgetting_keeps_up_to_the_step(log):
    log.drop_after(3)
    assert [m["step"] for m in log.metrics()] == [1, 2, 3]


def test_the_summary_has_the_newest_of_each(log):
    assert log.summary() | {"run": ""} == {
        "run": "",
        "step": 5,
        "tokens": 50,
        "loss": 0.0,
        "val_loss": 0.5,
        "val_loss_per_character": None,
        "val_bpb": None,
        "val_accuracy": None,
        "score": None,
        "val_score": None,
        "elapsed_seconds": None,
    }


def test_checkpoints_are_in_order_of_their_steps(log):
    for step in (999_999, 1_000_000, 5):
        folder = log.checkpoints / f"step-{step:06d}"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    assert [c.name for c in log.list_checkpoints()] == [
        "step-000005",
        "step-999999",
        "step-1000000",
    ]


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        open_run(tmp_path)
    assert list_runs(tmp_path / "nowhere") == []


def test_nothing_to_draw_is_said(tmp_path):
    empty = RunFolder(tmp_path)
    empty.create()
    with pytest.raises(UserError, match="nothing to draw"):
        plot_runs([empty], tmp_path / "a.png")
