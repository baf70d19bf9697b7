"""The loop: losses that a seed fixes, exact resumption, milestones, and what stops it."""

import dataclasses
import json
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from command import succeed
from safetensors.torch import load_file

from seq2chat.config import Recipe, ScheduleConfig, TokenizerConfig, UserError
from seq2chat.text.batch import evaluation_batches
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.shards import shards_in_memory
from seq2chat.training import clock as clock_module
from seq2chat.training import evaluation, loop, saving, types
from seq2chat.training import setup as job_module
from seq2chat.training.loop import train
from seq2chat.training.setup import resume_job, start_job
from seq2chat.training.types import Sampled, Saved, Step, Validated

WSD = ScheduleConfig("wsd", warmup=0.1, decay=0.6)
GOLDEN = Path(__file__).parents[1] / "golden"


def quiet(line: str) -> None: ...


def with_train(recipe, **changes):
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **changes))


def run(job, stop_after: int | None = None) -> list:
    stop, events = threading.Event(), []
    for event in train(job, stop):
        events.append(event)
        if isinstance(event, Step) and event.step == stop_after:
            stop.set()
    return events


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(m["step"], m["loss"]) for m in map(json.loads, lines) if "loss" in m]


@pytest.mark.parametrize("layout", ["gpt2", "modern"])
def test_golden_curve(layout, tiny_recipe, tmp_path):
    """The losses of a seeded run are those of the commit that wrote tests/golden; after a change
    that means to alter them, delete the file, run this test twice, and say so in the changelog."""
    recipe = dataclasses.replace(
        tiny_recipe, model=dataclasses.replace(tiny_recipe.model, layout=layout)
    )
    run(start_job(recipe, tmp_path / "run", quiet))
    curve = losses(tmp_path / "run")
    file = GOLDEN / f"tiny-{layout}.json"
    if not file.exists():
        file.write_text(json.dumps([round(loss, 6) for _, loss in curve]) + "\n")
        pytest.fail(f"{file} was missing and is written now; look at it and run the test again")
    expected = json.loads(file.read_text())
    torch.testing.assert_close([loss for _, loss in curve], expected, atol=2e-4, rtol=0)
    assert expected[-1] < expected[0] - 1


def test_accumulation_never_changes_the_loss_or_the_step(tiny_recipe, tmp_path):
    """Rows with unequal numbers of labels: a mean of means would differ."""
    whole = start_job(with_train(tiny_recipe, batch_size=8), tmp_path / "whole", quiet)
    parts = start_job(
        with_train(tiny_recipe, batch_size=2, accumulation=4), tmp_path / "parts", quiet
    )
    short = next(
        k
        for k in range(whole.task.loader.n_windows)
        if (whole.task.loader.sample(k)[1] == -100).any()
    )
    for job in (whole, parts):
        job.model.compute_dtype = torch.float64
        job.model.double().eval()  # no dropout, whose draws depend on the shape
        job.progress.samples = short - 3
    a, b = whole.task.step(whole), parts.task.step(parts)
    assert whole.progress.samples == parts.progress.samples == short + 5
    values = [(u.loss, u.grad_norm, u.n_tokens, u.flops) for u in (a, b)]
    assert values[0] == pytest.approx(values[1], rel=1e-12) and a.metrics == b.metrics == {}
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_mean_cross_entropy(tiny_recipe, tmp_path):
    job = start_job(tiny_recipe, tmp_path / "run", quiet)
    job.model.eval()
    batch = job.task.loader.batch(0, tiny_recipe.train.batch_size)
    expected = F.cross_entropy(job.model(batch.target).flatten(0, 1), batch.labels.flatten())
    gradients = torch.autograd.grad(expected, list(job.model.parameters()))
    update = job.task.step(job)
    loss, norm, n_tokens = update.loss, update.grad_norm, update.n_tokens
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert norm == pytest.approx(
        torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-5
    )
    assert n_tokens == (batch.labels != -100).sum()


def test_resuming_twice_is_exact(tiny_recipe, tmp_path):
    # 30 steps of 8 samples pass the end of the epoch after step 21.
    recipe = with_train(tiny_recipe, accumulation=2)
    job = start_job(recipe, tmp_path / "whole", quiet)
    assert 10 < job.task.loader.n_windows / 8 < 29
    run(job)
    run(start_job(recipe, tmp_path / "parts", quiet), stop_after=7)
    run(resume_job(tmp_path / "parts", {}, quiet), stop_after=19)
    last = resume_job(tmp_path / "parts", {}, quiet)
    run(last)
    assert last.progress.samples == 30 * 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    a, b = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)


def _weights(folder: Path) -> dict:
    return load_file(folder / "checkpoints" / "step-000030" / "model.safetensors")


def test_milestones_save_before_they_evaluate(tiny_recipe, tmp_path):
    events = run(start_job(tiny_recipe, tmp_path / "run", quiet))
    kinds = [(type(e), e.step) for e in events if not isinstance(e, Step)]
    # A checkpoint is written in the background, and is complete before the next one begins.
    assert kinds == [
        (Validated, 10),
        (Saved, 10),
        (Validated, 20),
        (Saved, 20),
        (Saved, 30),
        (Validated, 30),
        (Sampled, 30),
    ]
    assert events[-2].final
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-000020",
        "step-000030",
    ]


def test_sampling_and_validating_do_not_change_training(tiny_recipe, tmp_path):
    run(start_job(with_train(tiny_recipe, evals=1, samples=0), tmp_path / "few", quiet))
    run(
        start_job(
            with_train(tiny_recipe, evals=15, samples=15, checkpoints=15), tmp_path / "many", quiet
        )
    )
    assert losses(tmp_path / "few") == losses(tmp_path / "many")


def test_nan_loss_keeps_the_last_good_checkpoint(tiny_recipe, tmp_path):
    job = start_job(tiny_recipe, tmp_path / "run", quiet)
    with pytest.raises(
        UserError, match=r"step 13.*Resume from step-000010.*--resume --optim.matrix-lr"
    ):
        for event in train(job, threading.Event()):
            if isinstance(event, Step) and event.step == 12:
                with torch.no_grad():
                    job.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    resumed = resume_job(tmp_path / "run", {}, quiet)
    assert resumed.progress.step == 10
    assert all(p.isfinite().all() for p in resumed.model.parameters())


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock of its own for the loop: a step takes 1 s, a validation 5, a checkpoint 3, and
    nothing else any time."""
    clock = SimpleNamespace(now=1000.0)

    def taking(seconds, function):
        def slow(*arguments, **options):
            clock.now += seconds
            return function(*arguments, **options)

        return slow

    for module in (loop, clock_module, evaluation, job_module, saving):
        monkeypatch.setattr(
            module,
            "time",
            SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now),
        )
    slow_parts = (
        (types.Task, "step", 1.0),
        (types, "evaluate", 5.0),
        (saving.Saving, "_publish", 3.0),
    )
    for owner, name, seconds in slow_parts:
        monkeypatch.setattr(owner, name, taking(seconds, getattr(owner, name)))
    # This clock isn't shared with a thread, so training waits.
    monkeypatch.setattr(saving.Saving, "write_in_background", saving.Saving.write)
    return clock


def test_a_timed_run_ends_on_time_and_its_schedule_with_it(tiny_recipe, tmp_path, slow_clock):
    recipe = dataclasses.replace(
        with_train(tiny_recipe, budget="200s", evals=9, checkpoints=9, eval_tokens=0), schedule=WSD
    )
    slow_clock.now += 30  # of the budget are gone before the first step
    job = start_job(recipe, tmp_path / "run", quiet, began=slow_clock.now - 30)
    events = run(job)
    steps = [e for e in events if isinstance(e, Step)]
    assert 197 <= slow_clock.now - 1000 <= 200
    rates = [s.lr / recipe.optim.matrix_lr for s in steps]
    assert rates[0] < 0.1 and max(rates) == pytest.approx(1.0) and rates[-1] < 0.03
    assert steps[-1].share == pytest.approx(1.0, abs=0.03)


def test_slow_milestones_do_not_skip_others(tiny_recipe, tmp_path, slow_clock):
    recipe = with_train(tiny_recipe, budget="200s", evals=9, checkpoints=40, eval_tokens=0)
    events = run(start_job(recipe, tmp_path / "run", quiet, began=slow_clock.now))
    assert sum(isinstance(e, Validated) for e in events) == 9
    assert sum(isinstance(e, Saved) for e in events) > 15


def test_budget_used_up_by_preparation_is_refused(tiny_recipe, tmp_path, slow_clock):
    with pytest.raises(UserError, match=r"took 30 s, the whole budget of 20s; write at least 120s"):
        start_job(
            with_train(tiny_recipe, budget="20s"),
            tmp_path / "run",
            quiet,
            began=slow_clock.now - 30,
        )
    assert not (tmp_path / "run").exists()


def test_prompt_without_room_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match=r"train.prompt has 31 tokens.*32"):
        start_job(with_train(tiny_recipe, prompt="a" * 31), tmp_path / "run", quiet)


@pytest.mark.parametrize("change", ["text", "tokenizer"])
def test_run_refuses_another_text_or_tokenizer(tiny_recipe, tmp_path, text_file, change):
    file = tmp_path / "text.txt"
    file.write_text(text_file.read_text())
    recipe = dataclasses.replace(
        tiny_recipe, data=dataclasses.replace(tiny_recipe.data, corpus=str(file))
    )
    run(start_job(recipe, tmp_path / "run", quiet), stop_after=3)
    if change == "text":
        file.write_text(text_file.read_text().replace("cat", "cow", 1))
    else:
        ByteBPE.train([text_file.read_text()], 280).save(tmp_path / "run" / "tokenizer")
    with pytest.raises(UserError, match="has changed; put it back"):
        resume_job(tmp_path / "run", {}, quiet)


def test_validation_keeps_to_the_document_mask(tiny_recipe, tmp_path):
    lines = tmp_path / "lines.jsonl"
    sentences = [f"the cat sees house number {i}" for i in range(200)]
    lines.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences))
    data = dataclasses.replace(tiny_recipe.data, corpus=str(lines), document_mask=True)
    recipe = dataclasses.replace(tiny_recipe, data=data)
    job = start_job(recipe, tmp_path / "run", quiet)
    torch.nn.init.normal_(job.model.lm_head.weight, std=0.5)
    torch.nn.init.normal_(job.model.layers[0].self_attn.o_proj.weight, std=0.5)
    masked = job.task.validate(0, math.inf)[0].loss
    unmasked = dataclasses.replace(recipe, data=dataclasses.replace(data, document_mask=False))
    other = start_job(unmasked, tmp_path / "unmasked", quiet).task
    other.model = job.model
    job.task = other
    assert abs(job.task.validate(0, math.inf)[0].loss - masked) > 1e-3
    # A document that fits its window whole is scored as if it stood alone.
    shards = shards_in_memory(sentences[:9], job.tokenizer)
    batch = next(evaluation_batches(shards, 32, 1, document_mask=True))
    end = int((batch.target[0, 1:] == shards.eos_id).nonzero()[0]) + 1
    alone = job.model.eval()(batch.target[:, :end])
    packed = job.model(batch.target, batch.segments)
    torch.testing.assert_close(packed[:, :end], alone)


def test_a_refused_new_run_deletes_its_own_files_only(tiny_recipe, tmp_path):
    recipe = with_train(tiny_recipe, budget="5s")

    def refused(folder):
        job = start_job(recipe, folder, quiet)
        job.least_steps = 10**9
        with pytest.raises(UserError, match="too few to learn from"):
            run(job)

    refused(tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "thesis.txt").write_text("mine")
    refused(tmp_path / "shared")
    assert [file.name for file in (tmp_path / "shared").iterdir()] == ["thesis.txt"]


def test_a_resumed_run_that_is_refused_is_kept(tiny_recipe, tmp_path):
    start_job(with_train(tiny_recipe, budget="5s"), tmp_path / "run", quiet)
    job = resume_job(tmp_path / "run", {}, quiet)
    job.least_steps = 10**9
    with pytest.raises(UserError, match="too few to learn from"):
        run(job)
    assert (tmp_path / "run" / "config.toml").exists()


def test_a_used_budget_is_refused_and_not_written(tiny_recipe, tmp_path):
    run(start_job(with_train(tiny_recipe, budget="7 steps"), tmp_path / "run", quiet))
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(UserError, match="finished at step 7, and the budget of 5 steps"):
        resume_job(tmp_path / "run", {"train": {"budget": "5 steps"}}, quiet)
    assert (tmp_path / "run" / "config.toml").read_text() == before
    resume_job(tmp_path / "run", {"train": {"budget": "7.0 steps"}}, quiet)  # asks for nothing


def test_a_finished_timed_run_trains_no_further(tiny_recipe, tmp_path):
    run(start_job(with_train(tiny_recipe, budget="1s", samples=0), tmp_path / "run", quiet))
    done = losses(tmp_path / "run")
    events = run(resume_job(tmp_path / "run", {}, quiet))
    assert not any(isinstance(e, Step) for e in events)
    assert losses(tmp_path / "run") == done


@pytest.mark.parametrize(
    ("budget", "steps"), [("7 steps", 7), ("900 tokens", 8), ("0.5 epochs", 18)]
)
def test_budgets_in_steps_tokens_and_epochs(budget, steps, tiny_recipe, tmp_path):
    job = start_job(with_train(tiny_recipe, budget=budget), tmp_path / "run", quiet)
    assert job.task.loader.n_windows == 140
    assert max(e.step for e in run(job)) == steps


def test_finished_run_resumes_with_a_larger_budget(tiny_recipe, tmp_path):
    run(start_job(with_train(tiny_recipe, budget="10 steps"), tmp_path / "run", quiet))
    run(resume_job(tmp_path / "run", {"train": {"budget": "15 steps"}}, quiet), stop_after=12)
    run(resume_job(tmp_path / "run", {}, quiet))  # the new budget is the run's own from now on
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 16))


def test_options_that_may_change_on_resume(tiny_recipe, tmp_path):
    run(start_job(with_train(tiny_recipe, budget="4 steps"), tmp_path / "run", quiet), stop_after=2)
    said = []
    changes = {
        "optim": {"matrix_lr": 0.001},
        "train": {"evals": 1, "budget": "6 steps"},
        "model": {"dropout": 0.0},
    }
    job = resume_job(tmp_path / "run", changes, said.append)
    assert {group["peak"] for group in job.optimizers[0].param_groups} == {0.001}
    assert "from now on optim.matrix_lr is 0.001, not 0.02" in said
    assert (
        "from now on optim.matrix_lr is 0.001, not 0.02"
        in (tmp_path / "run" / "log.txt").read_text()
    )
    run(job)
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 7))
    assert Recipe.load(tmp_path / "run" / "config.toml").optim.matrix_lr == 0.001


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"seed": 2}},
        {"train": {"batch_size": 2}},
        {"model": {"n_layer": 1}},
        {"data": {"val_fraction": 0.2}},
        {"optim": {"matrices": "adamw"}},
    ],
)
def test_order_of_data_and_shape_may_not_change_on_resume(tiny_recipe, tmp_path, changes):
    run(start_job(with_train(tiny_recipe, budget="1 step"), tmp_path / "run", quiet))
    with pytest.raises(UserError, match="Leave it out"):
        resume_job(tmp_path / "run", changes, quiet)


def test_a_run_can_be_used_from_another_folder(tiny_recipe, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    text = Path(tiny_recipe.data.corpus).read_text(encoding="utf-8")
    (tmp_path / "here" / "own.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    recipe = dataclasses.replace(
        tiny_recipe, data=dataclasses.replace(tiny_recipe.data, corpus="own.txt")
    )
    run(start_job(with_train(recipe, budget="4 steps"), Path("run"), quiet), stop_after=2)
    monkeypatch.chdir(tmp_path)
    run(resume_job(Path("here/run"), {}, quiet))
    # A text that has moved is found again by its new path, and proves by its fingerprint that it is
    # the same.
    (tmp_path / "here" / "own.txt").rename(tmp_path / "moved.txt")
    changes = {"data": {"corpus": "moved.txt"}, "train": {"budget": "5 steps"}}
    run(resume_job(Path("here/run"), changes, quiet))
    assert [step for step, _ in losses(tmp_path / "here" / "run")] == list(range(1, 6))


def test_pretraining_begins_with_the_weights_of_another_run(tiny_recipe, tmp_path, text_file):
    run(start_job(with_train(tiny_recipe, budget="3 steps"), tmp_path / "first", quiet))
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text(encoding="utf-8").upper(), encoding="utf-8")
    recipe = dataclasses.replace(
        tiny_recipe,
        data=dataclasses.replace(tiny_recipe.data, corpus=str(other)),
        tokenizer=TokenizerConfig(),
        train=dataclasses.replace(
            tiny_recipe.train, start=str(tmp_path / "first"), budget="4 steps"
        ),
    )
    job = start_job(recipe, tmp_path / "second", quiet)
    before = load_file(tmp_path / "first" / "checkpoints" / "step-000003" / "model.safetensors")
    assert torch.equal(job.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    run(job, stop_after=2)
    run(resume_job(tmp_path / "second", {}, quiet))
    assert [step for step, _ in losses(tmp_path / "second")] == [1, 2, 3, 4]
    with pytest.raises(UserError, match=r"\[tokenizer\]"):
        wrong = dataclasses.replace(recipe, tokenizer=tiny_recipe.tokenizer)
        start_job(wrong, tmp_path / "third", quiet)


def test_a_run_is_never_overwritten(tiny_recipe, tmp_path):
    run(start_job(with_train(tiny_recipe, budget="1 step"), tmp_path / "run", quiet))
    with pytest.raises(UserError, match="already holds a run"):
        start_job(tiny_recipe, tmp_path / "run", quiet)


def test_a_compiler_that_fails_is_done_without(tiny_recipe, tmp_path, monkeypatch):
    """The types checked by the tests themselves are what torch.compile can't get through here."""
    lines = []
    job = start_job(
        with_train(tiny_recipe, compile="on", budget="2 steps"), tmp_path / "run", lines.append
    )
    assert job.recipe.train.compile == "off"
    assert sum("torch.compile failed" in line for line in lines) == 1
    run(job)
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2]


def test_compiled_training_has_the_losses_of_plain_training(tiny_tables, tmp_path):
    changes = {
        "model": {"dropout": 0.0, "n_layer": 1},
        "train": {"budget": "6 steps", "samples": 0},
    }
    file = tmp_path / "recipe.toml"
    Recipe.from_tables(tiny_tables, changes).save(file)
    for choice in ("off", "on"):
        options = ["--out", tmp_path / choice, "--train.compile", choice]
        succeed("train", file, *options, timeout=300)
    assert Recipe.load(tmp_path / "on" / "config.toml").train.compile == "on"
    torch.testing.assert_close(losses(tmp_path / "on"), losses(tmp_path / "off"), atol=2e-4, rtol=0)


def test_budget_used_up_by_one_step_is_refused(tiny_recipe, tmp_path, monkeypatch):
    """A run must not end well after a step or two at the beginning of its schedule."""

    def slow(job, clock, mark, after):
        time.sleep(3)
        yield from ()

    monkeypatch.setattr(loop, "_milestones", slow)
    job = start_job(with_train(tiny_recipe, budget="2s"), tmp_path / "run", quiet)
    with pytest.raises(UserError, match="too few to learn from; write at least --budget"):
        run(job)
