"""From a recipe or a run folder to a job that the loop can train."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from seq2chat.config import Budget, Recipe, TokenizerConfig, UserError, check
from seq2chat.device import pick_precision, seed_everything, unused_accelerators
from seq2chat.log import Log, ignore
from seq2chat.models.folder import Model, make_model, n_parameters
from seq2chat.models.gpt import GPT
from seq2chat.models.induction import build_induction_heads
from seq2chat.text.files import exists
from seq2chat.text.named import NAMED
from seq2chat.text.shares import map_names
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.training.checkpoint import load_checkpoint, verify_checkpoint
from seq2chat.training.clock import Clock
from seq2chat.training.compiled import compile_steps
from seq2chat.training.devices import device_of
from seq2chat.training.parallel import Parallel, blocks
from seq2chat.training.processes import (
    agree,
    check_same,
    code_version,
    from_main,
    join_processes,
    main_first,
    together,
    world_size,
)
from seq2chat.training.run_folder import RunFolder, open_run, run_folder
from seq2chat.training.state import Progress, resume_checkpoint
from seq2chat.training.straggler import Stopwatch
from seq2chat.training.tasks import check_tokenizer, load_text, make_task, make_tokenizer
from seq2chat.training.types import Job, Task

Prepare = Callable[[Recipe, Tokenizer | None, torch.device, Log, Log], Task]
"""Makes the task of a recipe, as `prepare_training` does. A resumed run passes its tokenizer."""


def prepare_training(
    recipe: Recipe, tokenizer: Tokenizer | None, device: torch.device, log: Log, status: Log
) -> Task:
    """Return the pretraining task of the recipe, with a fresh model or that of `train.start`.

    Raises UserError if tokenizer, text and model do not fit together.
    """
    check(
        recipe.align is None,
        f"This is a recipe of {recipe.method}; pass prepare=alignment.setup.prepare, or use "
        "seq2chat.train.",
    )
    check(
        recipe.model.objective != "score",
        "A reward model is trained from a GPT: seq2chat reward --start RUN.",
    )
    is_resumed = tokenizer is not None
    model = None
    if recipe.train.start:
        status("loading the starting model")
        recipe, model, tokenizer = _load_start(recipe)
    text = load_text(recipe, status)
    tokenizer = tokenizer or make_tokenizer(recipe, text, log, status)
    check_tokenizer(recipe, tokenizer)
    _check_prompt(recipe, tokenizer)
    vocab_size = recipe.model.vocab_size or tokenizer.vocab_size
    check(
        # For a resumed run the fingerprint of the data reports a foreign tokenizer.
        is_resumed or vocab_size >= tokenizer.vocab_size,
        f"model.vocab_size is {vocab_size} but the tokenizer has {tokenizer.vocab_size} tokens; "
        "write 0 to follow it.",
    )
    recipe = recipe.with_options("model", vocab_size=vocab_size)
    seed_everything(recipe.train.seed)
    if model is None:
        with device:
            model = make_model(recipe.model)
            if recipe.train.init == "induction":
                if not isinstance(model, GPT):
                    raise UserError('train.init "induction" is for a GPT.')
                build_induction_heads(model)
    return make_task(recipe, text, tokenizer, model.to(device), log, status)


def _load_start(recipe: Recipe) -> tuple[Recipe, Model, Tokenizer]:
    """Return the recipe with the shape of the starting model, that model, and its tokenizer."""
    start = recipe.train.start
    check(
        recipe.tokenizer == TokenizerConfig(),
        f"The tokenizer comes from train.start, {start}; leave the options of [tokenizer] out.",
    )
    loaded, tokenizer = load_checkpoint(Path(start))
    check(
        loaded.config.objective != "score",
        f"{start} is a reward model; continue from the model that it scores.",
    )
    shape = dataclasses.replace(loaded.config, dropout=recipe.model.dropout)
    default = type(recipe.model)()
    for name, value in vars(recipe.model).items():
        check(
            value in (getattr(default, name), getattr(shape, name, None)),
            f"model.{name} is {value}, but train.start has {getattr(shape, name, None)}; leave it "
            "out.",
        )
    model = make_model(shape)  # with the dropout of this run
    model.load_state_dict(loaded.state_dict())
    return dataclasses.replace(recipe, model=shape), model, tokenizer


def start_job(
    recipe: Recipe,
    folder: Path,
    log: Log = ignore,
    status: Log = ignore,
    began: float | None = None,
    prepare: Prepare = prepare_training,
) -> Job:
    """Return a job for a new run in `folder`, and write its complete `config.toml`.

    `log` gets one line per choice, `status` the current activity. The clock of a timed run starts
    at `began` (`time.monotonic()`). Raises UserError if the folder already holds a run, the data
    can't be used, or preparation took the whole budget.
    """
    began = time.monotonic() if began is None else began
    join_processes()
    together(lambda: check_free(folder))
    device = together(lambda: device_of(recipe))
    precision = agree(pick_precision(recipe.train.precision, device))
    name: Literal["bf16", "fp32"] = "bf16" if precision.dtype == torch.bfloat16 else "fp32"
    log(f"precision {name}: {precision.reason}")
    command = f"{recipe.method or 'train'} ... --out {folder}"
    if unused := unused_accelerators(device, world_size(), command):
        log(unused)
    recipe = with_absolute_paths(recipe.with_options("train", precision=name))
    _check_alike(recipe)
    task = _prepare_together(prepare, recipe, None, device, log, status)
    model = task.recipe.model
    size = n_parameters(model) / 1e6
    log(f"model {model.family}: {size:.1f}M parameters, {model.n_layer} layers of {model.d_model}")
    job = _make_job(task, run_folder(folder), device, log, status)
    budget = Budget.parse(recipe.train.budget)
    used = agree(time.monotonic() - began)
    check(
        budget.unit != "seconds" or used < budget.amount,
        f"Preparation took {used:.0f} s, the whole budget of {recipe.train.budget}; write at least "
        f"{4 * used:.0f}s.",
    )
    together(lambda: check_free(folder))  # two commands may have chosen it at the same moment
    job.run.begin(job.recipe, job.tokenizer)
    job.progress.seconds = time.monotonic() - began
    job.is_new = True
    return job


def resume_job(
    folder: Path,
    changes: dict[str, dict[str, Any]],
    log: Log = ignore,
    status: Log = ignore,
    prepare: Prepare = prepare_training,
) -> Job:
    """Return a job that continues the run in `folder` from its newest checkpoint, exactly, or from
    its start if there is none.

    `changes` replace options of the optimizer, the schedule, the validation and the budget from now
    on. Raises UserError for changes to the order of the data or the shape of the model, for a
    damaged checkpoint, and for data that has changed.
    """
    join_processes()
    run = together(lambda: open_run(folder))
    recipe = with_absolute_paths(Recipe.load(folder / "config.toml", changes))
    changed = changed_options(with_absolute_paths(run.recipe()), recipe)
    _check_changes(folder, changed)
    _check_alike(recipe)
    checkpoint = from_main(lambda: _newest_checkpoint(run))
    device = together(lambda: device_of(recipe))
    # A run with a checkpoint no longer needs its starting model, which may have been deleted.
    start = recipe.train.start
    if checkpoint is not None:
        recipe = recipe.with_options("train", start="")
    tokenizer = load_tokenizer(folder / "tokenizer")
    task = _prepare_together(prepare, recipe, tokenizer, device, log, status)
    job = _make_job(task, run, device, log, status)
    task.recipe = task.recipe.with_options("train", start=start)
    if checkpoint is not None:
        data = job.progress.data
        job.progress = resume_checkpoint(checkpoint, job.model, job.optimizers, task.modules())
        text = recipe.data.source or recipe.data.corpus
        check(
            job.progress.data == data,
            f"{text}, its tokenizer, a mixed-in text or the starting model of {folder} has "
            "changed; put it back, or start a new run.",
        )
    old, new = changed.get("train.budget", ("", ""))
    is_finished = run.is_validated(job.progress.step) and Clock(job).is_over()
    check(
        old == new or not is_finished or Budget.parse(old) == Budget.parse(new),
        f"{folder} is finished at step {job.progress.step}, and the budget of {new} is already "
        "used; write a longer one.",
    )
    agree(None)  # until all have read the metrics, none may drop any
    run.save_recipe(job.recipe)
    run.clean(job.progress.step)
    lines = [f"resumed {folder} at step {job.progress.step}"]
    lines += [f"from now on {name} is {new}, not {old}" for name, (old, new) in changed.items()]
    for line in lines:
        run.note(line)
        log(line)
    return job


def _prepare_together(
    prepare: Prepare,
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    device: torch.device,
    log: Log,
    status: Log,
) -> Task:
    """Return the task of `prepare`, with equal data and tokenizer on all processes.

    Process 0 prepares first. The others get its tokenizer, and read the tokens that it cached.
    Raises UserError if any of them lacks the data, or has other data.
    """

    def make(shared: Tokenizer | None) -> Task:
        return prepare(recipe, shared or tokenizer, device, log, status)

    task = main_first(make, lambda task: task.tokenizer if recipe.align is None else None)
    data = {"fingerprint": task.loader.fingerprint + task.origin}
    check_same("data", data)
    check_same("recipe", _options(task.recipe))
    return task


def _check_alike(recipe: Recipe) -> None:
    """Raise UserError unless all processes have the same code and the same recipe."""
    if world_size() > 1:
        check_same("code", {"version": code_version()})
        check_same("recipe", _options(recipe))


def _options(recipe: Recipe) -> dict[str, Any]:
    """Return the options by `table.name`, without paths: each server may have its own copy of the
    data, whose fingerprint is compared."""
    return {
        f"{table}.{name}": value
        for table, keys in recipe.tables().items()
        for name, value in keys.items()
        if name not in PATHS.get(table, ())
    }


def _newest_checkpoint(run: RunFolder) -> Path | None:
    """Return the newest checkpoint, or None. Raises UserError if it is damaged."""
    checkpoints = run.list_checkpoints()
    if checkpoints:
        verify_checkpoint(checkpoints[-1])
    return checkpoints[-1] if checkpoints else None


FIXED = (
    "model",
    "tokenizer",
    "data.val_fraction",
    "data.field",
    "data.document_mask",
    "data.mask_share",
    "data.max_characters",
    "train.seed",
    "train.batch_size",
    "train.start",
    "optim.matrices",
    "align.method",
    "align.examples",
    "align.rehearse",
    "align.episodes",
    "align.group",
    "align.lora_rank",
    "align.lora_alpha",
    "align.strict",
    "align.ema",
    "align.ptx_batch",
)
"""Tables and options that can't be changed on resume: they define the order of the data, and the
shapes of model and optimizer. Texts and the starting model may move, because fingerprints prove
that they are the same."""


def _check_changes(folder: Path, changed: dict[str, tuple[Any, Any]]) -> None:
    for name, (old, new) in changed.items():
        # SFT chooses among checkpoints only if it has a reward.
        adds_or_removes_reward = name == "align.reward" and not (old and new)
        is_fixed = name in FIXED or name.split(".")[0] in FIXED
        check(
            not is_fixed and not adds_or_removes_reward,
            f"{folder} was started with {name} {old}, which can't become {new}: that would change "
            "the order of its data or the shape of its model. Leave it out, or start a new run "
            "from its weights with --start.",
        )


def changed_options(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ between two recipes, by `table.name`, with both values.
    Dropout does not count as part of the model's shape."""
    old_tables, new_tables = before.tables(), after.tables()
    changed: dict[str, tuple[Any, Any]] = {}
    for table in old_tables | new_tables:
        old, new = old_tables.get(table, {}), new_tables.get(table, {})
        for name in old | new:
            if old.get(name) != new.get(name):
                is_dropout = (table, name) == ("model", "dropout")
                key = "dropout" if is_dropout else f"{table}.{name}"
                changed[key] = (old.get(name), new.get(name))
    return changed


PATHS = {
    "data": ("corpus", "source", "target"),
    "tokenizer": ("path",),
    "train": ("start",),
    "align": ("start", "reward", "ptx_corpus"),
}


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with existing paths made absolute, so that the run works from any
    folder."""
    for table, names in PATHS.items():
        section = getattr(recipe, table)
        for name in names:
            value = getattr(section, name, "")
            if value and value not in NAMED and value not in ("pydocs", "world", "oracle"):
                recipe = recipe.with_options(table, **{name: map_names(value, _absolute)})
    return recipe


def _absolute(value: str) -> str:
    """Return `value` with its path made absolute if that exists. A reward is FILE.py:FUNCTION."""
    file, ending, function = value.partition(".py:")
    path = Path(file + ".py") if ending else Path(value)
    if not exists(path):
        return value
    return f"{path.resolve()}:{function}" if ending else str(path.resolve())


def check_free(folder: Path) -> None:
    """Raise UserError if `folder` holds a run."""
    check(
        not (folder / "config.toml").exists(),
        f"{folder} already holds a run; resume it (--resume), or choose another folder (--out).",
    )


def _check_prompt(recipe: Recipe, tokenizer: Tokenizer) -> None:
    if recipe.model.objective == "next token":
        n_tokens = len(tokenizer.encode(recipe.train.prompt))
        context = recipe.model.context
        check(
            n_tokens + 1 < context,
            f"train.prompt has {n_tokens} tokens; model.context is {context}.",
        )


def _make_job(task: Task, run: RunFolder, device: torch.device, log: Log, status: Log) -> Job:
    recipe = task.recipe
    precision = agree(pick_precision(recipe.train.precision, device))
    task.model.compute_dtype = precision.dtype
    if isinstance(task.model, GPT):
        task.model.gradient_checkpointing = recipe.train.gradient_checkpointing
    parallel = together(lambda: Parallel(recipe.parallel, device, world_size()))
    together(lambda: parallel.check(recipe))
    task.divide(parallel, precision.dtype)
    optimizers = task.optimizers(recipe.optim, precision.dtype)
    progress = Progress(data=task.loader.fingerprint + task.origin)
    job = Job(run, task, optimizers, precision, device, progress)
    if not parallel.is_alone:
        # An RNN has no blocks.
        job.stopwatch = Stopwatch(blocks(task.model) or [task.model], device)
    status("compiling")
    is_compiled = compile_steps(job, log)
    task.recipe = recipe.with_options("train", compile="on" if is_compiled else "off")
    return job
