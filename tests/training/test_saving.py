"""Checkpoints in the background: the state of their step, one at a time, whole or absent."""

import dataclasses
import json
import resource
import signal
import threading
import time
from itertools import pairwise

import pytest

from seq2chat.config import UserError
from seq2chat.training import saving
from seq2chat.training.checkpoint import verify_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.saving import Saving, begin_checkpoint
from seq2chat.training.setup import resume_job, start_job
from seq2chat.training.types import Saved, Step

TENSORS = ("model.safetensors", "trainer/optimizer.safetensors", "trainer/rng.safetensors")


def quiet(line: str) -> None: ...


def run(job) -> list:
    return list(train(job, threading.Event()))


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def hashes(folder) -> dict[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text())["sha256"]
    return {name: manifest[name] for name in TENSORS}


@pytest.fixture
def held(monkeypatch):
    """Keeps writers from reading their tensors until it is set."""
    event = threading.Event()
    write = Saving.write

    def late(self, files):
        if threading.current_thread().name == "checkpoint":
            assert event.wait(60)
        write(self, files)

    monkeypatch.setattr(Saving, "write", late)
    return event


def test_it_holds_the_state_of_its_step_while_training_goes_on(tiny_recipe, tmp_path, held):
    steps = []
    job = start_job(tiny_recipe, tmp_path / "run", quiet)
    for event in train(job, threading.Event()):
        if isinstance(event, Step):
            steps.append(event.step)
        if event.step == 10 and isinstance(event, Step):
            held.clear()
        if event.step == 15:  # 5 steps after the copy, with other weights and moments
            assert not (job.run.checkpoints / "step-000010").exists()
            assert job.run.checkpoints.joinpath(".step-000010.tmp").is_dir()
            held.set()
        if isinstance(event, Saved) and event.step == 10:
            assert steps[-1] == 20
            assert (event.folder / "manifest.json").is_file()
            first = hashes(event.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saving, "write_in_background", Saving.write)
        other = dataclasses.replace(
            tiny_recipe, train=dataclasses.replace(tiny_recipe.train, keep=3)
        )
        waiting = start_job(other, tmp_path / "waiting", quiet)
        run(waiting)
    assert first == hashes(waiting.run.checkpoints / "step-000010")
    for step in (20, 30):
        name = f"step-0000{step}"
        assert hashes(job.run.checkpoints / name) == hashes(waiting.run.checkpoints / name)


def test_at_most_one_is_written_at_a_time_and_all_are_complete_at_the_end(
    tiny_recipe, tmp_path, monkeypatch
):
    most = []
    publish = Saving._publish

    def slow(self):
        most.append(len(writers()))
        time.sleep(0.2)
        publish(self)

    monkeypatch.setattr(Saving, "_publish", slow)
    recipe = dataclasses.replace(
        tiny_recipe, train=dataclasses.replace(tiny_recipe.train, checkpoints=10, keep=10)
    )
    job = start_job(recipe, tmp_path / "run", quiet)
    saved = [event.step for event in run(job) if isinstance(event, Saved)]
    assert most == [1] * 10
    assert saved == list(range(3, 31, 3))
    assert len(job.run.list_checkpoints()) == 10


def test_a_process_that_waits_for_a_slow_disk_shows_that_it_lives(
    tiny_recipe, tmp_path, monkeypatch
):
    signs = []
    publish = Saving._publish
    monkeypatch.setattr(saving, "alive", lambda: signs.append(time.monotonic()))
    monkeypatch.setattr(Saving, "_publish", lambda self: (time.sleep(2.5), publish(self)))
    recipe = dataclasses.replace(
        tiny_recipe, train=dataclasses.replace(tiny_recipe.train, checkpoints=1, budget="2 steps")
    )
    run(start_job(recipe, tmp_path / "run", quiet))
    assert len(signs) >= 2
    assert all(b - a < 2 for a, b in pairwise(signs))


@pytest.fixture
def small_disk():
    """Files of this process can't grow beyond 20 kB, as on a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_raised_at_the_next_step(tiny_recipe, tmp_path, small_disk):
    job = start_job(tiny_recipe, tmp_path / "run", quiet)
    with pytest.raises(UserError, match="is full, so step 10 was not saved"):
        for event in train(job, threading.Event()):
            if isinstance(event, Step) and event.step == 10:
                continue
            if job.saving is not None:
                job.saving.join()  # the error is known before the next step is over
    assert job.progress.step == 11
    assert not writers()
    assert not list(job.run.checkpoints.iterdir())


def test_another_error_of_the_thread_is_not_swallowed(tiny_recipe, tmp_path, monkeypatch):
    def broken(self):
        raise PermissionError("not yours")

    monkeypatch.setattr(Saving, "_publish", broken)
    job = start_job(tiny_recipe, tmp_path / "run", quiet)
    with pytest.raises(PermissionError, match="not yours"):
        run(job)
    assert job.progress.step < 20
    assert not list(job.run.checkpoints.iterdir())


def test_an_abandoned_run_completes_its_checkpoint(tiny_recipe, tmp_path, held):
    job = start_job(tiny_recipe, tmp_path / "run", quiet)
    events = train(job, threading.Event())
    for event in events:
        if event.step == 12:
            break
    assert writers()
    threading.Timer(0.3, held.set).start()
    events.close()
    assert not writers()
    assert resume_job(tmp_path / "run", {}, quiet).progress.step == 10


def test_without_memory_for_a_copy_training_waits(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "free_memory", lambda: 1000)
    job = start_job(tiny_recipe, tmp_path / "run", quiet)
    for event in train(job, threading.Event()):
        assert not writers()
        if isinstance(event, Step) and event.step > 10:
            assert (job.run.checkpoints / "step-000010" / "manifest.json").is_file()
            break


def test_a_kill_while_a_step_is_written_once_more_leaves_it_whole(
    tiny_recipe, tmp_path, monkeypatch
):
    recipe = dataclasses.replace(
        tiny_recipe, train=dataclasses.replace(tiny_recipe.train, budget="2 steps")
    )
    job = start_job(recipe, tmp_path / "run", quiet)
    run(job)

    class Killed(BaseException): ...

    def killed(folder, **_):
        if (folder / "model.safetensors").exists():
            (folder / "model.safetensors").unlink()
            raise Killed

    monkeypatch.setattr(saving.shutil, "rmtree", killed)
    monkeypatch.setattr(Saving, "write_in_background", Saving.write)
    job.progress.seconds += 1.0  # as if the budget had been used up since
    with pytest.raises(Killed):
        begin_checkpoint(job.run, job.model, job.tokenizer, job.optimizers, job.progress, keep=2)
    monkeypatch.undo()
    newest = job.run.list_checkpoints()[-1]
    assert newest.name == "step-000002"
    verify_checkpoint(newest)
    resume_job(tmp_path / "run", {}, quiet)
    assert list(job.run.checkpoints.iterdir()) == job.run.list_checkpoints()


def test_a_refused_run_is_deleted_once_nothing_writes_into_it(tiny_recipe, tmp_path, monkeypatch):
    publish = Saving._publish
    discard = RunFolder.discard
    alive = []

    def late(self):
        time.sleep(1)
        publish(self)

    def watched(self):
        alive.extend(writers())
        discard(self)

    monkeypatch.setattr(Saving, "_publish", late)
    monkeypatch.setattr(RunFolder, "discard", watched)
    train = dataclasses.replace(tiny_recipe.train, budget="60s", checkpoints=10**9)
    job = start_job(dataclasses.replace(tiny_recipe, train=train), tmp_path / "run", quiet)
    job.least_steps = 10**9
    with pytest.raises(UserError, match="too few to learn from"):
        run(job)
    assert job.saving is not None and alive == []
    assert not (tmp_path / "run").exists()
