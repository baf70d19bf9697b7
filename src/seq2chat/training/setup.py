"""From a recipe, or from a run folder, to a job that the loop can train."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from seq2chat.config import Budget, GPTConfig, Recipe, TokenizerConfig, check
from seq2chat.device import pick_device, pick_precision, seed_everything, unused_accelerators
from seq2chat.models.folder import Model, make_model, n_parameters, require_family
from seq2chat.text.named import NAMED
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.training.checkpoint import (
    Progress,
    load_checkpoint,
    resume_checkpoint,
    verify_checkpoint,
)
from seq2chat.training.compiled import compile_steps
from seq2chat.training.loop import Job
from seq2chat.training.optim import make_optimizers
from seq2chat.training.run_folder import RunLog, open_run
from seq2chat.training.tasks import Say, Task, load_text, make_task, make_tokenizer


def _nothing(text: str) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """A model, its tokenizer and what it is trained to do; in the recipe stands what data and
    machine decided."""

    recipe: Recipe
    model: Model
    tokenizer: Tokenizer
    task: Task


Prepare = Callable[[Recipe, Tokenizer | None, torch.device, Say, Say], Prepared]
"""How a recipe becomes a model and a task, as `prepare_training` does; a resumed run has its
tokenizer already."""


def prepare_training(
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    device: torch.device,
    say: Say,
    doing: Say,
) -> Prepared:
    """Return a model with fresh weights and the task that its family has on the recipe's text.

    Raises `UserError` when tokenizer, text and model do not fit together.
    """
    resumed = tokenizer is not None
    model = None
    if recipe.train.start:
        doing("loading the model to begin with")
        recipe, model, tokenizer = _load_start(recipe)
    text = load_text(recipe, doing)
    tokenizer = tokenizer or make_tokenizer(recipe, text, say, doing)
    _check_prompt(recipe, tokenizer)
    vocab_size = recipe.model.vocab_size or tokenizer.vocab_size
    check(
        # Another tokenizer than a run's own is told by its fingerprint.
        resumed or vocab_size >= tokenizer.vocab_size,
        f"model.vocab_size is {vocab_size} but the tokenizer has {tokenizer.vocab_size} tokens; "
        "write 0 to follow it.",
    )
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, vocab_size=vocab_size)
    )
    task = make_task(recipe, text, tokenizer, say, doing)
    seed_everything(recipe.train.seed)
    if model is None:
        with device:
            model = make_model(recipe.model)
    return Prepared(recipe, model.to(device), tokenizer, task)


def _load_start(recipe: Recipe) -> tuple[Recipe, Model, Tokenizer]:
    """Return the model and tokenizer to begin with, and the recipe with its shape."""
    start = recipe.train.start
    check(
        recipe.tokenizer == TokenizerConfig(),
        f"The tokenizer is that of train.start, {start}; leave the options of [tokenizer] out.",
    )
    loaded, tokenizer = load_checkpoint(Path(start))
    require_family(loaded, "gpt", "bert", "transformer", "seq2seq")
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
    say: Say,
    doing: Say = _nothing,
    began: float | None = None,
    prepare: Prepare = prepare_training,
) -> Job:
    """Job for a new run in `folder`, whose complete `config.toml` is written.

    `say` gets one line for each choice made, `doing` what is being done just now. The clock of a
    timed run counts from `began` (`time.monotonic()`). Raises `UserError` when the folder holds a
    run already, the data can't be used, or nothing is left of the budget to train in.
    """
    began = time.monotonic() if began is None else began
    log = RunLog(folder)
    check_free(folder)
    device = pick_device()
    precision = pick_precision(recipe.train.precision, device)
    name: Literal["bf16", "fp32"] = "bf16" if precision.dtype == torch.bfloat16 else "fp32"
    say(f"precision {name}: {precision.reason}")
    if unused := unused_accelerators():
        say(unused)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=name))
    recipe = with_absolute_paths(recipe)
    prepared = prepare(recipe, None, device, say, doing)
    model = prepared.recipe.model
    say(
        f"model {model.family}: {n_parameters(model) / 1e6:.1f}M parameters, {model.n_layer} layers"
        f" of {model.d_model}"
    )
    job = _make_job(prepared, log, device, say, doing)
    budget, used = Budget.parse(recipe.train.budget), time.monotonic() - began
    check(
        budget.unit != "seconds" or used < budget.amount,
        f"Making ready took {used:.0f} s, the whole budget of {recipe.train.budget}; write at least"
        f" {4 * used:.0f}s.",
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
    """Job that continues the run in `folder` from its newest checkpoint, exactly; from its start if
    it has none.

    `changes` are options from now on: of optimizer, schedule, validation and budget, say. Raises
    `UserError` for those that would change the order of the data or the shape of the model, for a
    damaged checkpoint, or for data that is no longer the same.
    """
    log = open_run(folder)
    recipe = with_absolute_paths(Recipe.load(folder / "config.toml", changes))
    changed = changed_options(with_absolute_paths(Recipe.load(folder / "config.toml")), recipe)
    for name, (old, new) in changed.items():
        gets_or_loses_judge = name == "align.reward" and not (old and new)
        check(
            name not in FIXED and name.split(".")[0] not in FIXED and not gets_or_loses_judge,
            f"{folder} was begun with {name} {old}, which can't become {new}: the order of its data"
            " or the shape of its model would be another. Leave it out, or begin a new run, with "
            "--start its weights.",
        )
    checkpoints = log.list_checkpoints()
    if checkpoints:
        verify_checkpoint(checkpoints[-1])
    device = pick_device()
    # A run with a checkpoint needs the model that it began with no more.
    start = recipe.train.start
    if checkpoints:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, start=""))
    prepared = prepare(recipe, load_tokenizer(folder / "tokenizer"), device, say, doing)
    job = _make_job(prepared, log, device, say, doing)
    job.recipe = dataclasses.replace(
        job.recipe, train=dataclasses.replace(job.recipe.train, start=start)
    )
    if checkpoints:
        data = job.progress.data
        job.progress = resume_checkpoint(
            checkpoints[-1], job.model, job.optimizers, job.task.modules
        )
        text = recipe.data.source or recipe.data.corpus
        check(
            job.progress.data == data,
            f"{text}, its tokenizer, a text that is mixed in or a model that {folder} began with is"
            " no longer what it was; put it back, or begin a new run.",
        )
    job.recipe.save(folder / "config.toml")
    log.forget_after(job.progress.step)
    for unfinished in log.checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(unfinished)
    for line in (
        f"resumed {folder} at step {job.progress.step}",
        *(f"from now on {name} is {new}, not {old}" for name, (old, new) in changed.items()),
    ):
        log.note(line)
        say(line)
    return job


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
    "align.episodes",
    "align.group",
    "align.lora_rank",
    "align.strict",
    "align.ema",
    "align.ptx_batch",
)
"""Tables and options of a run that can't be changed: order of the data, shape of model and
optimizer. The texts may move, because their fingerprints prove that they are the same; so may the
model that an alignment began with."""


def changed_options(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the options in which two recipes differ, `table.name`, with both values. Dropout
    shapes no model."""
    changed: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(Recipe):
        old, new = (
            dataclasses.asdict(getattr(before, field.name)),
            dataclasses.asdict(getattr(after, field.name)),
        )
        for name in old | new:
            if old.get(name) != new.get(name):
                key = (
                    "dropout"
                    if (field.name, name) == ("model", "dropout")
                    else f"{field.name}.{name}"
                )
                changed[key] = (old.get(name), new.get(name))
    return changed


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with the paths that exist made absolute, so that a run may be used from
    another folder."""
    for table, name in PATHS:
        section = getattr(recipe, table)
        value = getattr(section, name)
        file, ending, function = value.partition(".py:")  # a reward is FILE.py:FUNCTION
        path = Path(file + ".py") if ending else Path(value)
        if (
            value
            and path.exists()
            and value not in NAMED
            and value not in ("pydocs", "world", "oracle")
        ):
            absolute = f"{path.resolve()}:{function}" if ending else str(path.resolve())
            section = dataclasses.replace(section, **{name: absolute})
            recipe = dataclasses.replace(recipe, **{table: section})
    return recipe


PATHS = (
    ("data", "corpus"),
    ("data", "source"),
    ("data", "target"),
    ("tokenizer", "path"),
    ("train", "start"),
    ("align", "start"),
    ("align", "reward"),
    ("align", "ptx_corpus"),
)


def check_free(folder: Path) -> None:
    """Raises `UserError` where `folder` holds a run."""
    check(
        not (folder / "config.toml").exists(),
        f"{folder} holds a run already; add --resume to continue it, or choose another folder with "
        "--out.",
    )


def _check_prompt(recipe: Recipe, tokenizer: Tokenizer) -> None:
    if isinstance(recipe.model, GPTConfig):
        prompt, context = len(tokenizer.encode(recipe.train.prompt)), recipe.model.context
        check(
            prompt + 1 < context, f"train.prompt has {prompt} tokens; model.context is {context}."
        )


def _make_job(prepared: Prepared, log: RunLog, device: torch.device, say: Say, doing: Say) -> Job:
    recipe, model, task = prepared.recipe, prepared.model, prepared.task
    precision = pick_precision(recipe.train.precision, device)
    model.compute_dtype = precision.dtype
    job = Job(
        log,
        recipe,
        model,
        prepared.tokenizer,
        task,
        task.objective,
        (
            make_optimizers(model, recipe.optim, precision.dtype)
            if task.optimizers is None
            else list(task.optimizers)
        ),
        precision,
        device,
        Progress(data=task.loader.fingerprint + task.origin),
    )
    doing("compiling")
    is_compiled = compile_steps(job, say)
    job.recipe = dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, compile="on" if is_compiled else "off")
    )
    return job
