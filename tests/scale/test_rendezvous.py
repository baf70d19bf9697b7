"""Launchers on two servers: server 0 decides for both, and neither waits for one that has ended."""

import contextlib
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from scale.test_launch import events, launch, n_losses, wait_for
from training.ranks import free_port

from seq2chat.config import Recipe, UserError, to_toml
from seq2chat.scale import rendezvous
from seq2chat.scale.launch import Launch
from seq2chat.scale.rendezvous import Rendezvous

STEPS = 400  # more than a run gets to


@pytest.fixture(scope="module")
def recipe(tiny_tables, tmp_path_factory):
    changes = {
        "model": {"dropout": 0.0},
        "train": {"budget": f"{STEPS} steps", "checkpoints": 1, "evals": 1, "samples": 0},
    }
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(to_toml(Recipe.from_tables(tiny_tables, changes).tables()))
    return file


def two_servers(recipe, folder, *options):
    """Start two launchers, the first with these options, and wait until they train."""
    address = f"127.0.0.1:{free_port()}"

    def server(node, *words):
        words = ["--nproc", 1, "--nodes", 2, "--node", node, "--rendezvous", address, *words]
        return launch(*words, "--pause", 0, "train", recipe, "--out", folder)

    servers = [server(0, *options), server(1)]
    wait_for(lambda: n_losses(folder) >= 5, servers[0])
    return servers


def test_the_launcher_of_server_0_gives_up_for_both(recipe, tmp_path):
    folder = tmp_path / "run"
    servers = two_servers(recipe, folder, "--retries", 0)
    [start] = [event for event in events(folder, "start") if event["node"] == 1]
    os.kill(start["pids"][0], signal.SIGKILL)
    began = time.monotonic()
    outputs = [process.communicate(timeout=60)[1] for process in servers]
    assert time.monotonic() - began < 30
    assert [process.returncode for process in servers] == [1, 1], outputs
    for node, output in enumerate(outputs):
        kinds = [event["event"] for event in events(folder) if event["node"] == node]
        assert kinds == ["start", "died", "given up"]
        assert "The run ends, as attempt 1 failed." in output
        assert "Traceback" not in output


def test_a_signal_to_one_launcher_stops_both(recipe, tmp_path):
    folder = tmp_path / "run"
    servers = two_servers(recipe, folder)
    servers[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[1] for process in servers]
    assert [process.returncode for process in servers] == [0, 0], outputs
    sentences = {event["sentence"] for event in events(folder, "stopped")}
    assert len(events(folder, "stopped")) == 2 and len(sentences) == 1
    assert "Stopped and saved at step" in sentences.pop()


def test_the_others_end_soon_after_the_launcher_of_server_0(recipe, tmp_path):
    folder = tmp_path / "run"
    servers = two_servers(recipe, folder)
    servers[0].kill()
    servers[0].wait()
    servers[0].stderr.close()  # which its training process also has
    output = servers[1].communicate(timeout=60)[1]
    assert servers[1].returncode == 2
    assert "The launcher of server 0 has ended, so this one ends too." in output
    assert "Traceback" not in output
    with contextlib.suppress(ProcessLookupError):
        os.kill(events(folder, "start")[0]["pids"][0], signal.SIGKILL)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(rendezvous, "ANSWER", 0.5)
    monkeypatch.setattr(rendezvous, "FAREWELL", 0.5)


def launchers(n: int) -> list[Launch]:
    address = f"127.0.0.1:{free_port()}"
    return [
        Launch((), Path(), 1, n, node, rendezvous=address, grace=0.0001, retries=5)
        for node in range(n)
    ]


def first_kinds(attempt, reports):
    return {"kinds": [report["kind"] for report in reports], "reason": reports[-1]["reason"]}


def test_a_launcher_that_does_not_answer_is_named(impatient):
    jobs = launchers(2)
    decisions = {}

    def server(node):
        with Rendezvous(jobs[node]) as meeting:
            if node == 0:
                report = {"kind": "died", "reason": ""}
                decisions[node] = meeting.decide(0, report, first_kinds)

    threads = [threading.Thread(target=server, args=(node,)) for node in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    reason = "The launcher of server 1 doesn't answer."
    assert decisions == {0: {"kinds": ["died", "gone"], "reason": reason}}


def test_an_error_of_a_launcher_reaches_the_others_at_once():
    jobs = launchers(3)
    decisions = {}
    failures = {}

    def server(node):
        with contextlib.suppress(OSError), Rendezvous(jobs[node]) as meeting:
            if node == 2:
                raise OSError("No space left on device")
            while not (failure := meeting.failure(0)):
                time.sleep(0.01)
            failures[node] = failure
            report = {"kind": failure[0], "reason": failure[1]}
            decisions[node] = meeting.decide(0, report, first_kinds)

    threads = [threading.Thread(target=server, args=(node,)) for node in range(3)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join(20)
    assert time.monotonic() - began < 10
    sentence = "The launcher of server 2 has ended: No space left on device"
    assert failures == {0: ["gone", sentence], 1: ["gone", sentence]}
    assert decisions[0] == decisions[1] == {"kinds": ["gone"] * 3, "reason": sentence}


def test_a_server_that_never_comes_is_missed(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", timedelta(seconds=1))
    with pytest.raises(UserError, match="Only 1 of 2 launchers have started within 1 s"):
        Rendezvous(launchers(2)[0]).__enter__()
