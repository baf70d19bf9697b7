"""`seq2chat train`: train a model from a recipe, a corpus or a text."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from seq2chat.training.setup import Prepare
    from seq2chat.training.types import Validated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seq2chat.cli.options import RecipeFlags, given
from seq2chat.config import Recipe, check, recipe_names, recipe_tables


def train(
    source: Annotated[
        str,
        Parameter(
            help="recipe, corpus, text file or folder, .toml, or run [default: pydocs]",
            show_default=False,
        ),
    ] = "",
    *,
    budget: Annotated[
        str | None, Parameter(help='length: "10m", "2h", "500 steps", "3 epochs", "20M tokens"')
    ] = None,
    out: Annotated[Path | None, Parameter(help="run folder [default: runs/NAME]")] = None,
    start: Annotated[
        str | None,
        Parameter(help="run or model folder to continue from: its weights and tokenizer"),
    ] = None,
    resume: Annotated[
        bool, Parameter(help="resume the run in --out, or the given run folder", negative="")
    ] = False,
    flags: Annotated[RecipeFlags, Parameter(name="*")] = RecipeFlags(),  # noqa: B008 (frozen)
) -> None:
    """Train a model on your text, or with a recipe.

    For example, `seq2chat train my.txt --budget 10m` measures the machine and the text, and chooses
    all other options. Every choice is printed, saved in config.toml, and can be set with its flag.
    Ctrl-C saves and stops, and --resume continues.
    """
    began = time.monotonic()
    changes = given(flags)
    if budget is not None:
        changes.setdefault("train", {})["budget"] = budget
    if start is not None:
        changes.setdefault("train", {})["start"] = start
    if resume:
        check(
            not (source and out), f"Name the run to continue once: either {source} or --out {out}."
        )
        check(
            bool(source or out), "Which run shall go on? Write `seq2chat train runs/NAME --resume`."
        )
        continue_run(out or Path(source), changes)
    else:
        start_run(source, out, changes, began)


def start_run(source: str, out: Path | None, changes: dict, began: float) -> None:
    """Train what `source` names, into `out` or the first free `runs/NAME`."""
    from seq2chat.training.autosize import choose_tables
    from seq2chat.training.setup import check_free

    said = Said()
    if out:
        check_free(out)
    is_run = source and (Path(source) / "config.toml").exists()
    check(
        not is_run,
        f"{source} is a run: add --resume to continue it, or name {source}/config.toml to "
        "repeat it.",
    )
    if source in recipe_names():
        recipe = Recipe.from_tables(recipe_tables(source), changes, source="the flags")
    elif source.endswith(".toml"):
        recipe = Recipe.load(Path(source), changes)
    else:
        data = changes.get("data", {})
        corpus, parallel = data.get("corpus", ""), data.get("source", "")
        check(
            not (source and corpus),
            f"Name the text once: either {source} or --data.corpus {corpus}.",
        )
        check(
            not (source and parallel),
            f"Name the text once: either {source} or --data.source and --data.target.",
        )
        source = source or corpus or ("" if parallel else "pydocs")
        recipe = Recipe.from_tables(
            choose_tables(source, changes, said.say), changes, source="the flags"
        )
    begin(
        recipe,
        out or free_folder(Path(source or recipe.data.source).stem.split(".")[0] or "run"),
        said,
        began,
    )


class Said:
    """A console on standard error, and what was said on it, for the log of a run that has no folder
    yet."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.console.print(line, soft_wrap=True)


def begin(recipe: Recipe, folder: Path, said: Said, began: float) -> None:
    """Train by `recipe` into `folder`."""
    from seq2chat.text.corpus import left_out
    from seq2chat.training.setup import start_job

    if others := left_out(recipe.data.corpus, recipe.data.field):
        said.say(others)
    with preparing(
        said.console, "making ready", "Nothing was trained yet, so nothing is lost."
    ) as doing:
        job = start_job(recipe, folder, said.say, doing, began, prepare_for(recipe.method))
    for line in said.lines:
        job.run.note(line)
    watch(job, said.console)


@contextmanager
def preparing(console: Console, text: str, comfort: str) -> Iterator[Callable[[str], None]]:
    """Show what is being prepared, and stop within two seconds when asked to; yields what sets the
    text shown.

    Whoever stops it is told what was being done, and in `comfort` what has become of the run.
    """
    from seq2chat.training.stop import nothing_to_lose

    now = text
    with console.status(text) as status, nothing_to_lose(f"Stopped. {comfort}"):

        def doing(text: str) -> None:
            nonlocal now
            now = text
            status.update(text)

        try:
            yield doing
        except KeyboardInterrupt:
            status.stop()
            console.print(f"Stopped while {now}. {comfort}", soft_wrap=True)
            # What libraries do at exit, such as waiting for a compiler's processes, can take ten
            # seconds.
            os._exit(130)


def continue_run(folder: Path, changes: dict) -> None:
    """Train on what stopped in `folder`."""
    from seq2chat.training.run_folder import open_run
    from seq2chat.training.setup import resume_job

    console = Console(stderr=True, highlight=False, markup=False)
    with preparing(console, "reading the run back", f"{folder} is as it was.") as doing:
        prepare = prepare_for(open_run(folder).recipe().method)
        job = resume_job(folder, changes, console.print, doing, prepare)
    watch(job, console)


def prepare_for(method: str) -> "Prepare":
    """How a run with this method of alignment, or none, becomes a model and a task."""
    if method:
        from seq2chat.alignment.setup import prepare_alignment

        return prepare_alignment
    from seq2chat.training.setup import prepare_training

    return prepare_training


def free_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that is not there."""
    names = [name, *(f"{name}-{i}" for i in range(2, 10_000))]
    return next(Path("runs") / n for n in names if not (Path("runs") / n).exists())


def _validation(event: "Validated", unit: str) -> str:
    """What a validation found, in one line."""
    found, e = [], event.evaluation
    if e is not None:
        found.append(f"{e.loss:.4f} per {unit}")
        if e.bytes and unit == "token":
            found += [
                f"{e.loss_per_character:.4f} per character",
                f"{e.bits_per_byte:.4f} bits per byte",
            ]
    found += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in event.metrics.items()]
    size = "" if e is None else f" on {e.tokens:,} {unit}s"
    return f"step {event.step}: validation{size}: {' · '.join(found)}"


def watch(job, console: Console) -> None:
    """Train `job` and show it: a bar with loss, speed and time left, and a line for each
    milestone."""
    from seq2chat.models.folder import COMMAND
    from seq2chat.training import loop, types
    from seq2chat.training.run_folder import plot_runs
    from seq2chat.training.stop import stop_on_signals

    columns = (
        TextColumn("[bold]{task.percentage:3.0f}%"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bar, stop_on_signals() as stop:
        task, losses, saved = bar.add_task("starting", total=1.0), deque(maxlen=20), None
        for event in loop.train(job, stop):
            match event:
                case types.Step():
                    losses.append(event.loss)
                    shown = [
                        f"{name} {event.metrics[name]:.2f}"
                        for name in job.task.displayed
                        if name in event.metrics
                    ]
                    told = shown or [f"loss {fmean(losses):.3f}", f"{event.peak_share:.0%} of peak"]
                    text = " · ".join(
                        [f"step {event.step}", *told, f"{event.tokens_per_second:,.0f} tokens/s"]
                    )
                    bar.update(task, completed=event.share, description=text)
                    if not console.is_terminal and event.step % 100 == 0:
                        console.print(f"{event.share:4.0%} {text}", soft_wrap=True)
                case types.Validated():
                    text = _validation(event, job.task.unit)
                    console.print(text, soft_wrap=True)
                    job.run.note(text)
                case types.Sampled():
                    console.rule(f"sample at step {event.step}", style="dim", align="left")
                    console.print(
                        "\n".join(line[:160] for line in event.text.strip().splitlines()[:6]),
                        style="dim",
                    )
                    console.rule(style="dim")
                case types.Saved():
                    saved = event.folder
                    job.run.note(f"saved {saved.name}")
    if saved is None:
        console.print(
            f"{job.run.folder} is at its end, step {job.progress.step}. A longer --budget goes on."
        )
        return
    if job.progress.step:
        plot_runs([job.run], job.run.folder / "loss.png")
    if stop.is_set():
        if loop.is_over(job):
            console.print(
                f"Trained to the end and saved: {saved}. What was stopped is its last validation."
            )
            console.print(f"To measure it: {job.resume_command()}", soft_wrap=True)
        else:
            console.print(
                f"Stopped and saved at step {job.progress.step}. "
                f"Resume with: {job.resume_command()}",
                soft_wrap=True,
            )
        return
    expected = job.recipe.expect
    if expected.val_loss_per_character:
        console.print(
            f"The recipe as it is: {expected.val_loss_per_character} per character "
            f"({expected.machine})."
        )
    if expected.val_loss:
        console.print(f"The recipe as it is: {expected.val_loss} per token ({expected.machine}).")
    chats = job.recipe.method not in ("", "reward")
    command = "chat" if chats else COMMAND[job.model.config.family]
    console.print(f"Done: {saved}\nTry: seq2chat {command} {job.run.folder}", soft_wrap=True)
