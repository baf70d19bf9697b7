"""Translation and masked language modelling on the one loop: losses, budgets, resumption, and what
is refused."""

import dataclasses
import json
import math
import threading

import pytest
import torch

from seq2chat.config import Recipe, UserError
from seq2chat.text.batch import IGNORED
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.setup import resume_job, start_job
from seq2chat.training.translation import translation
from seq2chat.training.types import Sampled, Step, Validated

SHAPES = {
    "transformer": {"n_layer": 1, "n_head": 2, "d_model": 32, "context": 64},
    "seq2seq": {"d_embed": 16, "d_model": 32},
}
BERT = {"family": "bert", "n_layer": 1, "n_head": 2, "d_model": 32, "context": 32, "dropout": 0.1}


def quiet(line: str) -> None: ...


def run(job, stop_after: int | None = None) -> list:
    stop, events = threading.Event(), []
    for event in train(job, stop):
        events.append(event)
        if isinstance(event, Step) and event.step == stop_after:
            stop.set()
    return events


def losses(folder) -> list:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(m["step"], m["loss"]) for m in map(json.loads, lines) if "loss" in m]


def recipe_of(family: str, files: dict, **train) -> Recipe:
    return recipe(files, {"family": family, "dropout": 0.1} | SHAPES[family], **train)


def recipe(data: dict, model: dict, **train) -> Recipe:
    options = {
        "budget": "12 steps",
        "batch_size": 8,
        "seed": 1,
        "precision": "fp32",
        "evals": 2,
        "checkpoints": 3,
        "samples": 1,
    }
    return Recipe.from_tables(
        {"data": data, "tokenizer": {"vocab_size": 300}, "model": model, "train": options | train}
    )


@pytest.mark.parametrize("family", SHAPES)
def test_translation_run_learns_and_shows_samples(family, parallel_files, tmp_path):
    recipe = recipe_of(family, parallel_files, budget="40 steps", label_smoothing=0.1)
    recipe = dataclasses.replace(
        recipe,
        optim=dataclasses.replace(
            recipe.optim, embedding_lr=0.005, matrix_lr=0.005, matrices="adamw"
        ),
    )
    events = run(start_job(recipe, tmp_path / "run", quiet))
    curve = [e.loss for e in events if isinstance(e, Step)]
    assert curve[-1] < curve[0] - 1
    [shown] = [e.text for e in events if isinstance(e, Sampled)]
    assert shown.count("→") == 2
    last = [e for e in events if isinstance(e, Validated)][-1]
    assert last.final
    model, _ = load_checkpoint(tmp_path / "run")
    assert model.config.family == family
    assert Recipe.load(tmp_path / "run" / "config.toml").model == model.config


@pytest.mark.parametrize("family", SHAPES)
def test_resuming_across_an_epoch_is_exact(family, parallel_files, tmp_path):
    resumes_exactly(
        recipe_of(family, parallel_files, budget="3 epochs", accumulation=2, samples=0), tmp_path
    )


@pytest.mark.parametrize("next_sentence", [False, True])
def test_a_bert_resumes_exactly(next_sentence, text_file, tmp_path):
    model = BERT | {"next_sentence": next_sentence}
    resumes_exactly(
        recipe({"corpus": str(text_file)}, model, budget="3 epochs", batch_size=4, samples=0),
        tmp_path,
    )


def resumes_exactly(recipe: Recipe, folder) -> None:
    """Stopped and resumed twice, it has the losses of a run that nobody stopped."""
    whole = start_job(recipe, folder / "whole", quiet)
    n_steps = len([e for e in run(whole) if isinstance(e, Step)])
    assert n_steps > 20
    run(start_job(recipe, folder / "parts", quiet), stop_after=5)
    run(resume_job(folder / "parts", {}, quiet), stop_after=n_steps // 2 + 1)
    run(resume_job(folder / "parts", {}, quiet))
    assert losses(folder / "parts") == losses(folder / "whole")


def test_bert_with_both_heads_learns_and_is_saved(text_file, tmp_path):
    model = BERT | {"next_sentence": True, "dropout": 0.0}
    events = run(
        start_job(
            recipe({"corpus": str(text_file)}, model, budget="60 steps"), tmp_path / "run", quiet
        )
    )
    curve = [e.loss for e in events if isinstance(e, Step)]
    assert sum(curve[-5:]) / 5 < sum(curve[:5]) / 5 - 0.5
    [shown] = [e.text for e in events if isinstance(e, Sampled)]
    assert "→" in shown
    assert load_checkpoint(tmp_path / "run")[0].config.next_sentence


def test_pairs_left_out_are_told_with_their_beginnings(tmp_path):
    (tmp_path / "en").write_text("long " * 40 + "\n\na cat\na dog\n")
    (tmp_path / "de").write_text("lang\neins\neine Katze\nein Hund\n")
    told, files = [], {"source": str(tmp_path / "en"), "target": str(tmp_path / "de")}
    start_job(
        recipe(files, {"family": "transformer", **SHAPES["transformer"], "context": 20}),
        tmp_path / "run",
        told.append,
    )
    [line] = [line for line in told if "pairs to train on" in line]
    assert "left out 1 with a blank side" in line
    assert f"left out 1 of more than 20 tokens: “{('long ' * 40)[:40]}…”" in line


@pytest.mark.parametrize("family", SHAPES)
def test_validation_is_the_mean_over_single_pairs(family, parallel_files, tmp_path):
    job = start_job(recipe_of(family, parallel_files, label_smoothing=0.3), tmp_path / "run", quiet)
    job.model.double()
    job.model.compute_dtype = torch.float64
    result, _ = job.task.validate(0, math.inf)
    total, n_tokens, text = 0.0, 0, ""
    for batch in job.task.validation_batches(0):
        for row in range(batch.target.shape[0]):
            n = int((batch.labels[row] != IGNORED).sum())
            source = batch.source[row][batch.source_mask[row]]
            labels = batch.labels[row, :n]
            logits = job.model.eval()(source[None], batch.target[row, :n][None])[0]
            total -= logits.log_softmax(-1)[torch.arange(n), labels].sum().item()
            n_tokens += n
            text += job.tokenizer.decode(labels[:-1].tolist())
    assert result.loss_sum == pytest.approx(total, rel=1e-9)
    assert (result.tokens, result.characters, result.bytes) == (
        n_tokens,
        len(text),
        len(text.encode()),
    )


@pytest.mark.parametrize("family", SHAPES)
def test_padding_and_how_a_step_is_cut_never_change_it(family, parallel_files, tmp_path):
    """One batch in one piece, and the same pairs one by one: summed gradients over the global
    number of labels."""
    job = start_job(recipe_of(family, parallel_files), tmp_path / "run", quiet)
    job.model.double().eval()
    job.model.compute_dtype = torch.float64
    batch = job.task.loader.batch(0, 8)
    loss, _ = translation(job.model, batch)
    loss.backward()
    whole = [p.grad.clone() for p in job.model.parameters()]
    job.model.zero_grad()
    parts = 0.0
    for row in range(batch.target.shape[0]):
        keep = int((batch.labels[row] != IGNORED).sum())
        source = batch.source[row][batch.source_mask[row]]
        one = dataclasses.replace(
            batch,
            source=source[None],
            source_mask=None,
            target=batch.target[row, :keep][None],
            labels=batch.labels[row, :keep][None],
        )
        part, _ = translation(job.model, one)
        part.backward()
        parts += part.item()
    assert parts == pytest.approx(loss.item(), rel=1e-10)
    for grad, p in zip(whole, job.model.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-8, atol=1e-10)


def test_samples_count_pairs_and_a_step_reports_its_work(parallel_files, tmp_path):
    job = start_job(recipe_of("transformer", parallel_files), tmp_path / "run", quiet)
    batch = job.task.loader.batch(0, 8)
    update = job.task.step(job)
    assert job.progress.samples == batch.target.shape[0]
    assert update.n_tokens == (batch.labels != IGNORED).sum()
    assert update.flops == job.model.flops(batch)


def test_what_does_not_belong_together_is_refused(parallel_files, tmp_path, text_file):
    with pytest.raises(UserError, match="is not parallel text"):
        start_job(recipe_of("transformer", {"corpus": str(text_file)}), tmp_path / "b", quiet)
    with pytest.raises(UserError, match=r"train\.compile is for pretraining"):
        start_job(recipe_of("seq2seq", parallel_files, compile="on"), tmp_path / "d", quiet)
    assert not any((tmp_path / name).exists() for name in "bd")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"data": {"source": "a", "target": "b"}},
            r"data.source is for a seq2seq or a transformer; a gpt has no use",
        ),
        (
            {"model": {"family": "bert"}, "data": {"document_mask": True}},
            r"data.document_mask is for a gpt",
        ),
        (
            {"model": {"family": "seq2seq"}, "data": {"mask_share": 0.3}},
            r"data.mask_share is for a bert",
        ),
        (
            {"train": {"label_smoothing": 0.1}},
            r"train.label_smoothing is for a seq2seq or a transformer",
        ),
        (
            {"model": {"family": "transformer"}, "train": {"prompt": "Hello"}},
            r"train.prompt is for a gpt",
        ),
        ({"schedule": {"shape": "noam", "warmup": 0.0}}, "schedule.warmup is 0, but noam starts"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(tables, message):
    with pytest.raises(UserError, match=message):
        Recipe.from_tables(tables)


def test_an_option_of_another_family_is_named(parallel_files):
    with pytest.raises(UserError, match=r"Unknown option model.n_kv_head"):
        Recipe.from_tables({"model": {"family": "bert", "n_kv_head": 2}})
    with pytest.raises(UserError, match=r"model.family is 'rnn'.*gpt, seq2seq, transformer, bert"):
        Recipe.from_tables({"model": {"family": "rnn"}})


def test_model_padded_beyond_tokenizer_samples(text_file, tmp_path):
    """Tokens without text may be drawn, above all before anything is learned."""
    model = {"vocab_size": 3000, "context": 32, "n_layer": 1, "n_head": 2, "d_model": 32}
    events = run(
        start_job(
            recipe({"corpus": str(text_file)}, model, budget="1 step"), tmp_path / "run", quiet
        )
    )
    assert [e for e in events if isinstance(e, Sampled)]
