"""Checkpoints: whole or absent, hashed, and a Hugging Face folder; damage of every kind is
named."""

import dataclasses
import json
import os
import resource
import shutil
import threading

import pytest
import torch

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.training.checkpoint import find_checkpoint, load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.saving import begin_checkpoint
from seq2chat.training.setup import resume_job, start_job


def quiet(line: str) -> None: ...


@pytest.fixture(scope="module")
def trained(tiny_tables, tmp_path_factory):
    """A run folder with checkpoints at steps 2, 4 and 6."""
    from seq2chat.config import Recipe

    changes = {"train": {"budget": "6 steps", "keep": 3, "samples": 0, "evals": 1}}
    job = start_job(
        Recipe.from_tables(tiny_tables, changes), tmp_path_factory.mktemp("runs") / "run", quiet
    )
    for _ in train(job, threading.Event()):
        pass
    return job


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained.run.folder, tmp_path / "run")


def test_what_is_loaded_is_what_was_trained(trained):
    model, tokenizer = load_checkpoint(trained.run.folder)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert tokenizer.fingerprint == trained.tokenizer.fingerprint
    assert not model.training


def test_transformers_opens_it_with_the_same_ids_and_logits(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_checkpoint(trained.run.folder)
    theirs, ours = AutoModelForCausalLM.from_pretrained(folder).eval(), trained.model.eval()
    text = "The cat sees a río. straße"
    ids = trained.tokenizer.encode(text)
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "trainer/optimizer.safetensors", "tokenizer.json"]
)
def test_one_changed_byte_is_found_and_the_file_named(run, file):
    damaged = run / "checkpoints" / "step-000006" / file
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    if file.startswith("trainer"):
        load_checkpoint(run)  # which only a resumed run reads
    else:
        with pytest.raises(UserError, match=rf"{file} is damaged.*sha256.*previous checkpoint"):
            load_checkpoint(run)
    with pytest.raises(UserError, match=rf"{file} is damaged"):
        resume_job(run, {}, quiet)
    load_checkpoint(run / "checkpoints" / "step-000004")


def test_a_missing_file_is_named(run):
    (run / "checkpoints" / "step-000006" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"step-000006/model.safetensors is missing"):
        load_checkpoint(run)


def test_what_has_no_manifest_is_never_read(run):
    (run / "checkpoints" / "step-000006" / "manifest.json").unlink()
    (run / "checkpoints" / ".step-000008.tmp").mkdir()
    assert find_checkpoint(run).name == "step-000004"
    assert resume_job(run, {}, quiet).progress.step == 4


def test_a_tokenizer_of_another_checkpoint_is_refused(run, tmp_path):
    words = ["abc abd abe abf bcd bce bcf " * 3] * 4
    ByteBPE.train(words, 270).save(tmp_path / "other")
    folder = run / "checkpoints" / "step-000006"
    (folder / "manifest.json").unlink()
    shutil.copy(tmp_path / "other" / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(UserError, match=r"belongs to another checkpoint"):
        load_checkpoint(folder)


def test_where_there_is_nothing_to_load(tmp_path):
    with pytest.raises(UserError, match="There is no run"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains neither a checkpoint"):
        load_checkpoint(tmp_path / "empty")


def test_full_disk_keeps_older_checkpoints(trained, run):
    """The kernel itself refuses to let files grow: the limit acts as a disk with 20 kB left."""
    log = dataclasses.replace(trained, run=type(trained.run)(run)).run
    child = os.fork()
    if child == 0:
        status = 1
        try:
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            progress = dataclasses.replace(trained.progress, step=7)
            begin_checkpoint(
                log, trained.model, trained.tokenizer, trained.optimizers, progress, keep=1
            ).wait()
        except UserError as error:
            status = 0 if "is full" in str(error) and "step 7 was not saved" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(p.name for p in log.checkpoints.iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000006",
    ]
    load_checkpoint(run)


def test_progress_is_all_the_state_of_the_data(trained):
    saved = json.loads(
        (find_checkpoint(trained.run.folder) / "trainer" / "progress.json").read_text()
    )
    assert {k: saved[k] for k in ("step", "samples")} == {"step": 6, "samples": 24}
