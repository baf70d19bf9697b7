"""`seq2chat launch` on real processes: killed, hung, stopped, refused and diverging ones."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training.ranks import free_port, losses

from seq2chat.config import Recipe, UserError, to_toml
from seq2chat.scale import launch as launching
from seq2chat.scale.launch import Launch, Supervisor, run_folder_of
from seq2chat.scale.slurm import slurm_script

STEPS = 48


def launch(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "seq2chat", "launch", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"},
        stderr=subprocess.PIPE,
        text=True,
    )


def events(folder: Path, kind: str = "") -> list[dict]:
    file = folder / "events.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    # On a busy machine, either process may become slow.
    every = [event for event in map(json.loads, lines) if event["event"] != "straggler"]
    return [event for event in every if kind in ("", event["event"])]


def n_losses(folder: Path) -> int:
    return len(losses(folder)) if (folder / "metrics.jsonl").exists() else 0


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(scope="module")
def recipe(tiny_tables, tmp_path_factory):
    changes = {
        "model": {"dropout": 0.0, "d_model": 64},
        "train": {"budget": f"{STEPS} steps", "checkpoints": 12, "evals": 1, "samples": 0},
    }
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(to_toml(Recipe.from_tables(tiny_tables, changes).tables()))
    return file


def test_killed_and_hung_processes_are_replaced_and_the_losses_are_those_of_one(recipe, tmp_path):
    alone = subprocess.Popen(
        [sys.executable, "-m", "seq2chat", "train", recipe, "--out", tmp_path / "alone"],
        stderr=subprocess.DEVNULL,
    )
    folder = tmp_path / "run"
    options = ["--nproc", 2, "--pause", 0.1, "--hang-timeout", 8]
    process = launch(*options, "train", recipe, "--out", folder)
    wait_for(lambda: n_losses(folder) >= 12, process)
    os.kill(events(folder, "start")[0]["pids"][1], signal.SIGKILL)

    wait_for(lambda: len(events(folder, "start")) == 2, process)
    # The metrics after the checkpoint are dropped, and written again.
    wait_for(lambda: n_losses(folder) < 12, process)
    wait_for(lambda: n_losses(folder) >= 22, process)
    os.kill(events(folder, "start")[1]["pids"][1], signal.SIGSTOP)

    _, output = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert alone.wait(60) == 0
    assert losses(folder) == pytest.approx(losses(tmp_path / "alone"), abs=2e-6, rel=2e-6)
    kinds = [event["event"] for event in events(folder)]
    assert kinds == ["start", "died", "restart", "start", "hung", "restart", "start", "done"]
    assert "Process 1 was ended by SIGKILL after step 1" in output
    assert "for 8 s after step 2" in output and "Process 1 is suspended." in output
    assert "Starting again from step-0000" in output


def test_sigterm_saves_and_the_run_goes_on_later(recipe, tmp_path):
    folder = tmp_path / "run"
    process = launch("--nproc", 2, "train", recipe, "--out", folder)
    wait_for(lambda: n_losses(folder) >= 7, process)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 0, output
    step = events(folder, "stopped")[0]["step"]
    assert 7 <= step < STEPS
    assert (folder / f"checkpoints/step-{step:06d}/manifest.json").exists()
    # The same command, as a scheduler repeats it, resumes the run. Another one would be ignored.
    command = ("train", str(recipe), "--out", str(folder))
    assert Launch(command, folder, 2).words() == ["train", str(folder), "--resume"]
    other = (*command, "--budget", "9 steps")
    assert Launch(other, folder, 2).words() == list(other)


def test_a_run_that_diverges_again_ends(recipe, tmp_path):
    rates = ["--optim.matrix-lr", "1e30", "--optim.embedding-lr", "1e30", "--optim.clip", "0"]
    folder = tmp_path / "run"
    process = launch("--nproc", 1, "--pause", 0, "train", recipe, *rates, "--out", folder)
    _, output = process.communicate(timeout=90)
    assert process.returncode == 1, output
    kinds = [event["event"] for event in events(folder)]
    assert kinds == ["start", "nan", "restart", "start", "nan", "given up"]
    assert "not finite again" in output
    assert output.count("so training stopped") == 2


def test_mistakes_are_refused_once(tmp_path):
    process = launch("--nproc", 2, "train", tmp_path / "none.txt", "--out", tmp_path / "run")
    _, output = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert output.count("error:") == 1  # of two processes, one prints
    assert [event["event"] for event in events(tmp_path / "run")] == ["start", "refused"]


def test_two_servers_restart_together(recipe, tmp_path):
    port = free_port()
    folder = tmp_path / "run"

    def server(node):
        options = ["--nproc", 1, "--nodes", 2, "--node", node, "--rendezvous", f"127.0.0.1:{port}"]
        return launch(*options, "--pause", 0, "train", recipe, "--out", folder)

    servers = [server(0), server(1)]
    wait_for(lambda: n_losses(folder) >= 12, servers[0])
    [start] = [e for e in events(folder, "start") if e["node"] == 1]
    os.kill(start["pids"][0], signal.SIGKILL)
    outputs = [process.communicate(timeout=90)[1] for process in servers]
    assert [process.returncode for process in servers] == [0, 0], outputs
    for node in (0, 1):
        kinds = [event["event"] for event in events(folder) if event["node"] == node]
        assert kinds == ["start", "died", "restart", "start", "done"]
    assert len(losses(folder)) == STEPS
    assert "Process 1 was ended by SIGKILL" in outputs[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nodes", 2, "--rendezvous", "here"], "HOST:PORT"),
        (["--nodes", 2, "--rendezvous", "127.0.0.1:99999"], "HOST:PORT"),
        (["--nodes", 2, "--node", 2, "--rendezvous", "127.0.0.1:1234"], "--node is 2"),
    ],
)
def test_servers_that_cannot_meet_are_refused(options, words, tmp_path):
    process = launch("--nproc", 1, *options, "train", "a.txt", "--out", tmp_path / "run")
    _, output = process.communicate(timeout=60)
    assert process.returncode == 2 and words in output


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ["--nproc", 1, "--nodes", 2, "--rendezvous", f"127.0.0.1:{port}"]
        process = launch(*options, "train", "a.txt", "--out", tmp_path / "run")
        _, output = process.communicate(timeout=60)
    assert process.returncode == 2 and f"The port {port} of 127.0.0.1 is taken" in output


def test_the_run_folder_of_a_command():
    assert run_folder_of(("train", "my.txt", "--out", "runs/a")) == Path("runs/a")
    assert run_folder_of(("ppo", "--out=runs/a", "--start", "b")) == Path("runs/a")
    assert run_folder_of(("train", "runs/a", "--resume")) == Path("runs/a")
    with pytest.raises(UserError, match="--out"):
        run_folder_of(("train", "my.txt"))
    with pytest.raises(UserError, match="train, sft"):
        run_folder_of(("serve", "runs/a"))


def test_the_slurm_script_is_a_script(tmp_path):
    job = Launch(("train", "my text.txt", "--out", "runs/a"), Path("runs/a"), 8, nodes=4)
    file = tmp_path / "job.sh"
    file.write_text(slurm_script(job))
    subprocess.run(["bash", "-n", file], check=True)
    text = file.read_text()
    assert "#SBATCH --nodes=4\n" in text and "--nproc 8" in text
    assert "--signal=TERM@120" in text and "my text.txt" in text
    spaced = Launch(("train", "a.txt", "--out", "runs/my run"), Path("runs/my run"), 1)
    assert "#SBATCH --job-name='my run'\n" in slurm_script(spaced)


def test_a_signal_in_the_pause_after_a_failure_stops_the_run(tmp_path, monkeypatch):
    def start(*_):
        return [subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])]

    supervisor = Supervisor(Launch(("train", "a.txt"), tmp_path, 1), lambda _: None)
    monkeypatch.setattr(launching, "SETTLE", 0)
    monkeypatch.setattr(Supervisor, "_start", start)
    monkeypatch.setattr(Supervisor, "_pause", lambda *_: supervisor.signals.append(signal.SIGTERM))
    assert supervisor.run() == 0
    assert [event["event"] for event in events(tmp_path)] == ["start", "died", "restart", "stopped"]


def test_a_refused_command_does_not_resume_the_run_of_another(recipe, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("")
    command = ("train", str(recipe), "--out", str(folder))
    job = Launch(command, folder, 2)
    event = {"event": "start", "command": list(command), "begins": False}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert job.words() == list(command)
    (folder / "events.jsonl").write_text(json.dumps(event | {"begins": True}) + "\n")
    assert job.words() == ["train", str(folder), "--resume"]
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "sto' + json.dumps(event) + "\n")  # after a line that is cut
    assert job.words() == ["train", str(folder), "--resume"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--node", 1], r"--node is 1, and --nodes is 1"),
        (["--retries", -1], "--retries is -1"),
        (["--hang-timeout", 0], "--hang-timeout is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, tmp_path):
    process = launch("--nproc", 2, *options, "train", "x.txt", "--out", tmp_path / "run")
    _, output = process.communicate(timeout=60)
    assert process.returncode == 2 and message in output
