"""The routes of runs: every number is that of the run folder and of its checkpoints."""

import asyncio
import os
import shutil
import threading
import time

import httpx
import pytest
import torch
from safetensors.torch import load_file
from serving.trained_runs import PAIR, SENTENCE, train_gpt, train_rnn

from seq2chat.inference.validation_bleu import validation_bleu
from seq2chat.interpret.probe import repeated_tokens
from seq2chat.interpret.reading import input_ids, with_target
from seq2chat.interpret.trace import trace
from seq2chat.serving.app import create_app
from seq2chat.serving.engine_thread import EngineThread
from seq2chat.serving.errors import UnknownRun
from seq2chat.serving.run_store import watched_folders
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.setup import resume_job


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {"gpt": train_gpt(folder / "gpt"), "rnn": train_rnn(folder / "rnn")}


@pytest.fixture
def app(runs):
    thread = EngineThread([])
    thread.start()
    yield create_app([], thread, runs=list(runs.values()))
    thread.stop()


@pytest.fixture
def get(app):
    """Return the response to a GET request."""

    def send(path, **options):
        async def respond():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1"
            ) as client:
                return await client.get(path, **options)

        return asyncio.run(respond())

    return send


def test_runs_are_listed(get):
    data = get("/api/runs").json()["data"]
    assert [(one["name"], one["family"], one["method"]) for one in data] == [
        ("gpt", "gpt", "pretraining"),
        ("rnn", "seq2seq", "pretraining"),
    ]


def test_curves_are_the_metrics(get, runs):
    reply = get("/api/runs/gpt").json()
    metrics = runs["gpt"].metrics()
    steps = [m for m in metrics if "loss" in m]
    assert reply["train"]["axes"]["step"] == [m["step"] for m in steps]
    for name in ("loss", "lr", "grad_norm"):
        assert reply["train"]["metrics"][name] == pytest.approx([m[name] for m in steps], rel=1e-5)
    validations = [m["val_loss"] for m in metrics if "val_loss" in m]
    assert reply["validation"]["metrics"]["val_loss"] == pytest.approx(validations, rel=1e-5)
    assert reply["checkpoints"] == [4, 8, 12] and reply["samples"] == [6, 12]
    sample = get("/api/runs/gpt/samples/12").json()
    assert sample["text"] == runs["gpt"].newest_sample()


def test_a_run_without_news_is_not_sent_again(get, runs):
    first = get("/api/runs/gpt")
    etag = {"if-none-match": first.headers["etag"]}
    second = get("/api/runs/gpt", headers=etag)
    assert (second.status_code, second.content) == (304, b"")
    text = runs["gpt"].metrics_file.read_text()
    runs["gpt"].record({"step": 13, "tokens": 1, "loss": 1.0})
    assert get("/api/runs/gpt", headers=etag).json()["last"]["step"] == 13
    runs["gpt"].metrics_file.write_text(text)


def test_losses_of_a_sentence_are_those_of_the_checkpoint(get, runs):
    for folder in runs["gpt"].list_checkpoints():
        step = int(folder.name[5:])
        reply = get(f"/api/runs/gpt/checkpoints/{step}/tokens", params={"text": SENTENCE}).json()
        model, tokenizer = load_checkpoint(folder)
        one = trace(model, input_ids(model, tokenizer, SENTENCE))
        expected = [-one.logprobs(i)[token].item() for i, token in enumerate(one.tokens[1:])]
        assert [t["id"] for t in reply["tokens"]] == one.tokens
        losses = [t["loss"] for t in reply["tokens"]]
        assert losses[0] is None and losses[1:] == pytest.approx(expected, rel=1e-4)


def test_losses_of_a_translation_are_those_of_its_tokens(get, runs):
    text, translation = PAIR
    query = {"text": text, "translation": translation}
    reply = get("/api/runs/rnn/checkpoints/6/tokens", params=query).json()
    model, tokenizer = load_checkpoint(runs["rnn"].list_checkpoints()[-1])
    source, read = with_target(model, tokenizer, input_ids(model, tokenizer, text), translation)
    one = trace(model, source, read)
    labels = [*read[1:], tokenizer.eos_id]
    expected = [-one.logprobs(i)[label].item() for i, label in enumerate(labels)]
    assert [t["id"] for t in reply["tokens"]] == labels
    assert [t["loss"] for t in reply["tokens"]] == pytest.approx(expected, rel=1e-4)


def test_head_scores_and_gradients(get, runs):
    reply = get("/api/runs/gpt/checkpoints/8/heads").json()
    folder = runs["gpt"].list_checkpoints()[1]
    model, tokenizer = load_checkpoint(folder)
    tokens = repeated_tokens(tokenizer.vocab_size, 16)
    one = trace(model, tokens)
    for layer in range(2):
        for head in range(2):
            weights = one[f"layers.{layer}.self_attn.heads"][head]
            previous = sum(weights[i, i - 1].item() for i in range(1, 32)) / 31
            induction = sum(weights[i, i - 15].item() for i in range(16, 32)) / 16
            assert reply["previous"][layer][head] == pytest.approx(previous, rel=1e-4)
            assert reply["induction"][layer][head] == pytest.approx(induction, rel=1e-4)
    state = load_file(folder / "trainer" / "optimizer.safetensors")
    own = [
        tensor.square().sum()
        for key, tensor in state.items()
        if key.startswith("layers.1.") and key.endswith((":exp_avg", ":momentum"))
    ]
    layers = get("/api/runs/gpt/checkpoints/8/gradients").json()["layers"]
    assert layers["layers.1"] == pytest.approx(torch.stack(own).sum().sqrt().item(), rel=1e-4)
    assert list(layers) == ["embed_tokens", "layers.0", "layers.1", "lm_head", "norm"]
    assert get("/api/runs/rnn/checkpoints/6/heads").json()["previous"] is None


def test_bleu_is_sacrebleus(get, runs):
    reply = get("/api/runs/rnn/checkpoints/6/bleu").json()
    model, tokenizer = load_checkpoint(runs["rnn"].list_checkpoints()[-1])
    score, n_pairs = validation_bleu(model, tokenizer, runs["rnn"].recipe())
    assert (reply["bleu"], reply["pairs"]) == (pytest.approx(score, rel=1e-5), n_pairs)


def test_mistakes_are_one_sentence(get, runs):
    cases = {
        "/api/runs/gone": (404, "There is no run 'gone' here; there are: gpt, rnn."),
        "/api/runs/gpt/checkpoints/5/heads": (404, "gpt has no checkpoint of step 5 any more"),
        "/api/runs/gpt/samples/7": (404, "gpt has no sample of step 7."),
        "/api/runs/gpt/checkpoints/4/bleu": (400, "gpt does not translate, so it has no BLEU."),
        "/api/runs/gpt/checkpoints/4/tokens?text=+": (400, "The text is empty"),
        "/api/runs/gpt/checkpoints/4/tokens?text=" + "ox+" * 99: (400, "The text has"),
        "/api/runs/rnn/checkpoints/6/tokens?text=a": (400, "Write a translation, too"),
        "/api/runs/gpt/checkpoints/4/wrong": (400, "probe: "),
        "/api/runs/gpt/checkpoints/x/heads": (400, "step: "),
    }
    for path, (status, message) in cases.items():
        response = get(path)
        assert response.status_code == status, (path, response.text)
        assert message in response.json()["error"]["message"]
        assert "\n" not in response.json()["error"]["message"]


@pytest.fixture
def copy(tmp_path, runs):
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(runs["gpt"].folder, copy.folder)
    return copy


@pytest.fixture
def store(copy):
    return create_app([], EngineThread([]), runs=[copy]).state.serving.runs


def test_a_deleted_checkpoint_keeps_its_measurements_also_when_its_run_is_resumed(copy, store):
    before = store.measure("copy", 4, "heads")
    shutil.rmtree(copy.checkpoints / "step-000004")
    assert store.measure("copy", 4, "heads") == before
    time.sleep(0.01)
    job = resume_job(copy.folder, {"train": {"budget": "14 steps"}})
    list(train(job, threading.Event()))
    assert copy.list_checkpoints()[-1].name == "step-000014"
    assert store.measure("copy", 4, "heads") == before


def test_another_checkpoint_of_the_same_step_is_measured_again(copy, store):
    step = copy.checkpoints / "step-000004"
    other = copy.checkpoints / "step-000008"
    before = store.measure("copy", 4, "heads")
    expected = store.measure("copy", 8, "heads").replace(b'"step":8', b'"step":4')
    times = (step / "manifest.json").stat()
    shutil.rmtree(step)
    other.rename(step)
    os.utime(step / "manifest.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.measure("copy", 4, "heads") == expected != before


def test_another_run_in_the_folder_has_no_measurements_of_deleted_checkpoints(copy, store):
    store.measure("copy", 4, "heads")
    copy.discard()
    with pytest.raises(UnknownRun, match="no checkpoint of step 4"):
        store.measure("copy", 4, "heads")
    train_gpt(copy.folder, steps=3)
    with pytest.raises(UnknownRun, match="no checkpoint of step 4"):
        store.measure("copy", 4, "heads")


def test_runs_are_found_in_every_path(runs, tmp_path):
    checkpoints = runs["gpt"].list_checkpoints()
    root = runs["gpt"].folder.parent
    model = tmp_path / "model"
    model.mkdir()
    assert [r.folder for r in watched_folders(checkpoints)] == [runs["gpt"].folder]
    assert [r.folder.name for r in watched_folders([root])] == ["gpt", "rnn"]
    assert watched_folders([model]) == []


def test_a_run_that_has_just_begun(tmp_path, runs):
    new = RunFolder(tmp_path / "new")
    new.create()
    shutil.copy(runs["gpt"].folder / "config.toml", new.folder)
    store = create_app([], EngineThread([]), runs=[new]).state.serving.runs
    content, _ = store.find("new").reply()
    assert b'"checkpoints":[]' in content and b'"last":{}' in content
