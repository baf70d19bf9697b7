"""From a recipe, or from a run folder, to a job that the loop can train."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from seq2chat.config import Budget, GPTConfig, Recipe, check
from seq2chat.device import pick_device, pick_precision, seed_everything, synchronize
from seq2chat.models.folder import Model, make_model, n_parameters
from seq2chat.models.gpt import GPT
from seq2chat.text.tokenizer import Tokenizer
from seq2chat.text.wordpiece import WordPiece, load_tokenizer
from seq2chat.training.checkpoint import Progress, resume_checkpoint, verify_checkpoint
from seq2chat.training.loop import Job, total_steps
from seq2chat.training.objective import causal_lm, nll_sum
from seq2chat.training.optim import make_optimizers
from seq2chat.training.runlog import RunLog, open_run
from seq2chat.training.task import Say, Task, load_text, make_task, make_tokenizer

COMPILE_PAYS = 120  # seconds of the shortest run in which it does; docs/log.md


def _nothing(text: str) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """A model, its tokenizer and what it is trained to do; in the recipe stands what data and machine decided."""

    recipe: Recipe
    model: Model
    tokenizer: Tokenizer | WordPiece
    task: Task


Prepare = Callable[[Recipe, Tokenizer | WordPiece | None, torch.device, Say, Say], Prepared]
"""How a recipe becomes a model and a task, as `prepare_training` does; a resumed run has its tokenizer already."""


def prepare_training(
    recipe: Recipe, tokenizer: Tokenizer | WordPiece | None, device: torch.device, say: Say, doing: Say
) -> Prepared:
    """Return a model with fresh weights and the task that its family has on the recipe's text.

    Raises `UserError` when tokenizer, text and model do not fit together.
    """
    text = load_text(recipe, doing)
    resumed = tokenizer is not None
    tokenizer = tokenizer or make_tokenizer(recipe, text, say, doing)
    _check_prompt(recipe, tokenizer)
    vocab_size = recipe.model.vocab_size or tokenizer.vocab_size
    check(
        resumed or vocab_size >= tokenizer.vocab_size,  # another tokenizer than a run's own is told by its fingerprint
        f"model.vocab_size is {vocab_size} but the tokenizer has {tokenizer.vocab_size} tokens; write 0 to follow it.",
    )
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=vocab_size))
    task = make_task(recipe, text, tokenizer, say, doing)
    seed_everything(recipe.train.seed)
    with device:
        model = make_model(recipe.model)
    return Prepared(recipe, model, tokenizer, task)


def start_job(
    recipe: Recipe,
    folder: Path,
    say: Say,
    doing: Say = _nothing,
    began: float | None = None,
    prepare: Prepare = prepare_training,
) -> Job:
    """Job for a new run in `folder`, whose complete `config.toml` is written.

    `say` gets one line for each choice made, `doing` what is being done just now. The clock of a timed run counts from
    `began` (`time.monotonic()`). Raises `UserError` when the folder holds a run already, the data can't be used, or
    nothing is left of the budget to train in.
    """
    began = time.monotonic() if began is None else began
    log = RunLog(folder)
    check_free(folder)
    device = pick_device()
    precision = pick_precision(recipe.train.precision, device)
    name: Literal["bf16", "fp32"] = "bf16" if precision.dtype == torch.bfloat16 else "fp32"
    say(f"precision {name}: {precision.reason}")
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=name))
    prepared = prepare(recipe, None, device, say, doing)
    model = prepared.recipe.model
    say(f"model {model.family}: {n_parameters(model) / 1e6:.1f}M parameters, {model.n_layer} layers of {model.d_model}")
    job = _make_job(prepared, log, device, say, doing)
    budget, used = Budget.parse(recipe.train.budget), time.monotonic() - began
    check(
        budget.unit != "seconds" or used < budget.amount,
        f"Making ready took {used:.0f} s, the whole budget of {recipe.train.budget}; write at least {4 * used:.0f}s.",
    )
    check_free(folder)  # two commands may have chosen it at the same moment
    log.create()
    job.tokenizer.save(folder / "tokenizer")
    job.recipe.save(folder / "config.toml")  # last: it makes the folder a run
    job.progress.seconds = time.monotonic() - began
    return job


def resume_job(
    folder: Path,
    changes: dict[str, dict[str, Any]],
    say: Say,
    doing: Say = _nothing,
    prepare: Prepare = prepare_training,
) -> Job:
    """Job that continues the run in `folder` from its newest checkpoint, exactly; from its start if it has none.

    Of its options only the budget may be changed. Raises `UserError` for other changes, a damaged checkpoint, or data
    that is no longer the same.
    """
    log = open_run(folder)
    recipe = Recipe.load(folder / "config.toml", changes)
    before = Recipe.load(folder / "config.toml")
    same = dataclasses.replace(before, train=dataclasses.replace(before.train, budget=recipe.train.budget))
    check(recipe == same, f"{folder} continues with the options it began with; only --budget can be changed.")
    checkpoints = log.list_checkpoints()
    if checkpoints:
        verify_checkpoint(checkpoints[-1])
    device = pick_device()
    prepared = prepare(recipe, load_tokenizer(folder / "tokenizer"), device, say, doing)
    job = _make_job(prepared, log, device, say, doing)
    if checkpoints:
        data = job.progress.data
        job.progress = resume_checkpoint(checkpoints[-1], job.model, job.optimizers, job.task.modules)
        text = recipe.data.source or recipe.data.corpus
        check(
            job.progress.data == data,
            f"{text}, its tokenizer or a model that {folder} began with is no longer what it was; put it back, or "
            "begin a new run.",
        )
    job.recipe.save(folder / "config.toml")
    log.forget_after(job.progress.step)
    for unfinished in log.checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(unfinished)
    log.note(f"resumed at step {job.progress.step}")
    say(f"resumed {folder} at step {job.progress.step}")
    return job


def check_free(folder: Path) -> None:
    """Raises `UserError` where `folder` holds a run."""
    check(
        not (folder / "config.toml").exists(),
        f"{folder} holds a run already; add --resume to continue it, or choose another folder with --out.",
    )


def _check_prompt(recipe: Recipe, tokenizer: Tokenizer | WordPiece) -> None:
    if isinstance(recipe.model, GPTConfig):
        prompt, context = len(tokenizer.encode(recipe.train.prompt)), recipe.model.context
        check(prompt + 1 < context, f"train.prompt has {prompt} tokens; model.context is {context}.")


def _make_job(prepared: Prepared, log: RunLog, device: torch.device, say: Say, doing: Say) -> Job:
    recipe, model, task = prepared.recipe, prepared.model, prepared.task
    precision = pick_precision(recipe.train.precision, device)
    model.compute_dtype = precision.dtype
    job = Job(
        log, recipe, model, prepared.tokenizer, task, task.objective,
        make_optimizers(model, recipe.optim, precision.dtype) if task.optimizers is None else list(task.optimizers),
        precision, device, Progress(data=task.loader.fingerprint + task.origin),
    )  # fmt: skip
    doing("compiling")
    compiled = _compile(job, say)
    job.recipe = dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, compile="on" if compiled else "off")
    )
    return job


def _compile(job: Job, say: Say) -> bool:
    """Compile the blocks and the loss of `job` if that is asked for or pays; whether they are. A failure falls back."""
    train, model = job.recipe.train, job.model
    if not isinstance(model, GPT) or job.recipe.align.method:
        what = job.recipe.align.method or model.config.family
        check(train.compile != "on", f"train.compile is for pretraining a GPT; for {what} write auto or off.")
        return False

    def seconds_of_a_pass(rows: int) -> float:
        batch = job.task.loader.batch(0, rows).to(job.device)
        began = time.perf_counter()
        loss, _ = job.objective(model, batch)
        loss.backward()
        synchronize(job.device)
        model.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    choice, budget = train.compile, Budget.parse(train.budget)
    if choice == "auto":
        # A part of a batch is enough to tell, and leaves the memory of a plain pass over all of it unused.
        rows = max(1, train.batch_size // 4)
        passes = total_steps(job) * train.accumulation * train.batch_size / rows
        seconds = budget.amount if budget.unit == "seconds" else passes * min(seconds_of_a_pass(rows) for _ in range(2))
        choice = "on" if seconds >= COMPILE_PAYS else "off"
        if choice == "off":
            say(f"torch.compile off: the run takes about {seconds:.0f} s, and compiling pays from {COMPILE_PAYS} s on")
    if choice == "on":
        plain = job.objective
        # The blocks share one compiled function, so this takes a fraction of compiling the model whole (docs/log.md).
        for block in model.layers:
            block.compile(dynamic=False)
        job.objective = partial(causal_lm, nll=torch.compile(nll_sum, dynamic=False))
        try:
            say(f"torch.compile on: ready after {seconds_of_a_pass(train.batch_size):.0f} s")
        except Exception as error:
            for block in model.layers:
                block._compiled_call_impl = None
            job.objective, choice = plain, "off"
            say(f"torch.compile failed here ({type(error).__name__}), so training is not compiled.")
    model.zero_grad(set_to_none=True)
    seed_everything(job.recipe.train.seed)
    return choice == "on"
