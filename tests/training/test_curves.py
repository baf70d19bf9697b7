"""The curves of a run are its metrics, in bounded memory, whenever they are read."""

import json

import pytest

from seq2chat.training.curves import MAX_NAMES, MAX_POINTS, Curves
from seq2chat.training.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.create()
    return made


def rows(first, last):
    return [
        {"step": i, "tokens": 7 * i, "loss": 9 / i, "grad_norm": i % 5, "elapsed_seconds": i / 2}
        for i in range(first, last + 1)
    ]


def write(run, records):
    with run.metrics_file.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_short_runs_have_every_row(run):
    write(run, rows(1, 5))
    write(run, [{"step": 5, "tokens": 35, "val_loss": 0.5, "elapsed_seconds": 3.0}])
    curves = Curves(run)
    curves.update()
    train = curves.train.columns()
    assert train["axes"]["step"] == [1, 2, 3, 4, 5]
    assert train["metrics"]["loss"] == pytest.approx([9, 4.5, 3, 2.25, 1.8])
    assert train["low"] == {} and train["block_rows"] == 1
    assert curves.validation.columns()["metrics"] == {"val_loss": [0.5]}
    assert curves.last["loss"] == 1.8 and curves.last["val_loss"] == 0.5


def test_long_runs_have_means_of_blocks(run):
    records = rows(1, 5000)
    write(run, records)
    curves = Curves(run)
    curves.update()
    train = curves.train.columns()
    size = train["block_rows"]
    assert size == 16 and len(train["axes"]["step"]) <= MAX_POINTS
    blocks = [records[i : i + size] for i in range(0, len(records), size)]
    means = [sum(row["loss"] for row in block) / len(block) for block in blocks]
    assert train["metrics"]["loss"] == pytest.approx(means, rel=1e-5)
    assert train["axes"]["step"] == [block[-1]["step"] for block in blocks]
    assert train["high"]["grad_norm"] == [max(r["grad_norm"] for r in block) for block in blocks]


def test_blocks_do_not_depend_on_when_the_file_is_read(run):
    live = Curves(run)
    for first in range(1, 1500, 37):
        write(run, rows(first, first + 36))
        live.update()
    late = Curves(run)
    late.update()
    assert live.train.columns() == late.train.columns()


def test_a_cut_line_waits_and_a_broken_one_is_counted(run):
    write(run, rows(1, 2))
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3, "lo')
    curves = Curves(run)
    curves.update()
    assert curves.train.columns()["axes"]["step"] == [1, 2] and curves.n_unreadable == 0
    with run.metrics_file.open("a") as file:
        file.write('ss": 1.0}\n[1]\n{"step": 4, "loss": NaN}\n')
    curves.update()
    assert curves.train.columns()["axes"]["step"] == [1, 2, 3, 4]
    assert curves.train.columns()["metrics"]["loss"][-2:] == [1.0, None]
    assert curves.n_unreadable == 1


def test_a_resumed_run_is_read_again(run):
    write(run, rows(1, 9))
    curves = Curves(run)
    curves.update()
    run.drop_after(4)
    write(run, rows(5, 6))
    curves.update()
    assert curves.train.columns()["axes"]["step"] == [1, 2, 3, 4, 5, 6]
    run.metrics_file.unlink()
    curves.update()
    assert curves.train.blocks == []


def test_names_are_bounded(run):
    write(run, [{"step": 1} | {f"m{i}": 1.0 for i in range(200)}])
    curves = Curves(run)
    curves.update()
    assert len(curves.train.columns()["metrics"]) == MAX_NAMES
