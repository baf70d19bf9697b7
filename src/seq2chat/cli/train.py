"""`seq2chat train`: train a model from a recipe, a corpus or a text."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from seq2chat.training.types import Job, Step, Validated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seq2chat.cli.options import given, recipe_flags
from seq2chat.config import Recipe, check, recipe_names, recipe_tables

PretrainingFlags = recipe_flags("")
Watch = Annotated[
    bool,
    Parameter(help="show the training as a page, and open it if there is a browser", negative=""),
]
RISEN = 0.03  # nats above the lowest validation loss, beyond the noise of a sample


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
    device: Annotated[
        str | None, Parameter(help="auto, cpu, cuda, cuda:1 or mps [default: auto]")
    ] = None,
    resume: Annotated[
        bool, Parameter(help="resume the run in --out, or the given run folder", negative="")
    ] = False,
    watch: Watch = False,
    flags: Annotated[PretrainingFlags, Parameter(name="*")] = PretrainingFlags(),  # pyrefly: ignore
) -> None:
    """Train a model on your text, or with a recipe.

    For example, `seq2chat train my.txt --budget 10m` measures the machine and the text, and chooses
    all other options. Every choice is printed, saved in config.toml, and can be set with its flag.
    Ctrl-C saves and stops, and --resume continues. For the flags of recipes that align a model, see
    `seq2chat sft --help` and its siblings.
    """
    began = time.monotonic()
    changes = given(flags)
    if budget is not None:
        changes.setdefault("train", {})["budget"] = budget
    if start is not None:
        changes.setdefault("train", {})["start"] = start
    if device is not None:
        changes.setdefault("train", {})["device"] = device
    if resume:
        check(
            not (source and out), f"Name the run to continue once: either {source} or --out {out}."
        )
        check(bool(source or out), "No run to resume: write `seq2chat train runs/NAME --resume`.")
        continue_run(out or Path(source), changes, watch)
    else:
        start_run(source, out, changes, began, watch)


def start_run(
    source: str, out: Path | None, changes: dict, began: float, watch: bool = False
) -> None:
    """Train a model from `source` in `out`, or in the first free `runs/NAME`."""
    from seq2chat.text.files import exists
    from seq2chat.training.processes import together
    from seq2chat.training.setup import check_free

    console = LoggedConsole()
    if out:
        together(lambda: check_free(out))
    is_run = source and exists(Path(source) / "config.toml")
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
        source, recipe = _sized_recipe(source, changes, console)
    name = Path(source or recipe.data.source).stem.split(".")[0] or "run"
    train_recipe(recipe, out or free_folder(name, console), console, began, watch)


def _sized_recipe(source: str, changes: dict, console: "LoggedConsole") -> tuple[str, Recipe]:
    """Return the name of the text, and a recipe sized for it and for this machine."""
    from seq2chat.training.autosize import choose_tables
    from seq2chat.training.processes import from_main

    data = changes.get("data", {})
    corpus = data.get("corpus", "")
    parallel = data.get("source", "")
    check(
        not (source and corpus),
        f"Name the text once: either {source} or --data.corpus {corpus}.",
    )
    check(
        not (source and parallel),
        f"Name the text once: either {source} or --data.source and --data.target.",
    )
    source = source or corpus or ("" if parallel else "pydocs")
    # Measured once, so that all processes train the same model.
    tables = from_main(lambda: choose_tables(source, changes, console.log))
    return source, Recipe.from_tables(tables, changes, source="the flags")


def main_console() -> Console:
    """Return a console on standard error, on which process 0 of a run prints."""
    from seq2chat.training.processes import is_main, join_processes

    join_processes()
    return Console(stderr=True, highlight=False, markup=False, quiet=not is_main())


class LoggedConsole:
    """A console on standard error that keeps its lines, for the log of a run without a folder
    yet."""

    def __init__(self) -> None:
        self.console = main_console()
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)
        self.console.print(line, soft_wrap=True)


def train_recipe(
    recipe: Recipe,
    folder: Path,
    console: LoggedConsole,
    began: float,
    watch: bool = False,
) -> None:
    """Train by `recipe` into `folder`, with a page if `watch`. The clock of a timed run started at
    `began`."""
    from seq2chat.alignment.setup import prepare
    from seq2chat.text.corpus import left_out
    from seq2chat.training.processes import together
    from seq2chat.training.setup import start_job

    if others := together(lambda: left_out(recipe.data.corpus, recipe.data.field)):
        console.log(others)
    comfort = "Nothing was trained yet, so nothing is lost."
    with preparing(console.console, "preparing", comfort) as status:
        job = start_job(recipe, folder, console.log, status, began, prepare)
    for line in console.lines:
        job.run.note(line)
    run_job(job, console.console, watch)


@contextmanager
def preparing(console: Console, activity: str, comfort: str) -> Iterator[Callable[[str], None]]:
    """Show the current activity, which the yielded function sets, and stop within two seconds on a
    signal.

    The message then names the activity, and `comfort` the state of the run.
    """
    from seq2chat.training.stop import nothing_to_lose

    current = activity
    with console.status(activity) as spinner, nothing_to_lose(f"Stopped. {comfort}"):

        def status(activity: str) -> None:
            nonlocal current
            current = activity
            spinner.update(activity)

        try:
            yield status
        except KeyboardInterrupt:
            spinner.stop()
            console.print(f"Stopped while {current}. {comfort}", soft_wrap=True)
            # The exit handlers of libraries, for example waiting for a compiler's processes, can
            # take ten seconds.
            os._exit(130)


def continue_run(folder: Path, changes: dict, watch: bool = False) -> None:
    """Resume the run in `folder`, with a page if `watch`."""
    from seq2chat.alignment.setup import prepare
    from seq2chat.training.setup import resume_job

    console = main_console()
    with preparing(console, "reading the run", f"{folder} is unchanged.") as status:
        job = resume_job(folder, changes, console.print, status, prepare)
    run_job(job, console, watch)


def free_folder(name: str, console: LoggedConsole) -> Path:
    """Return the first of runs/NAME, runs/NAME-2, ... that does not exist."""
    from seq2chat.training.processes import agree

    names = [name, *(f"{name}-{i}" for i in range(2, 10_000))]
    folder = agree(next(Path("runs") / n for n in names if not (Path("runs") / n).exists()))
    if folder.name != name:
        console.log(f"runs/{name} exists, so this run is {folder}")
    return folder


def _validation(event: "Validated", unit: str) -> str:
    """Return the result of a validation as one line."""
    evaluation = event.evaluation
    values = []
    size = ""
    if evaluation is not None:
        size = f" on {evaluation.tokens:,} {unit}s"
        values.append(f"{evaluation.loss:.4f} per {unit}")
        if evaluation.bytes and unit == "token":
            values.append(f"{evaluation.loss_per_character:.4f} per character")
            values.append(f"{evaluation.bits_per_byte:.4f} bits per byte")
    values += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in event.metrics.items()]
    return f"step {event.step}: validation{size}: {' · '.join(values)}"


def run_job(job: "Job", console: Console, watch: bool = False) -> None:
    """Train `job`, with a page if `watch`."""
    from seq2chat.cli.watch import page_of

    # Of several processes, the one that prints has the page.
    with page_of(job.run.folder) if watch and not console.quiet else nullcontext():
        display(job, console)
    if watch:
        console.print(f"To see the page again: seq2chat watch {job.run.folder}", soft_wrap=True)


def display(job: "Job", console: Console) -> None:
    """Train `job` and display it: a bar with loss, speed and remaining time, and a line per
    milestone."""
    from seq2chat.training.loop import train as train_loop
    from seq2chat.training.processes import beat
    from seq2chat.training.stop import stop_on_signals
    from seq2chat.training.types import Sampled, Saved, Step, Straggler, Validated

    columns = (
        TextColumn("[bold]{task.percentage:3.0f}%"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    losses = deque(maxlen=20)
    saved = None
    with Progress(*columns, console=console, transient=True) as bar, stop_on_signals() as stop:
        task = bar.add_task("starting", total=1.0)
        for event in train_loop(job, stop):
            beat(job.progress.step)
            match event:
                case Step():
                    losses.append(event.loss)
                    text = _step(event, job.task.display(event.metrics), fmean(losses))
                    bar.update(task, completed=event.share, description=text)
                    if not console.is_terminal and event.step % 100 == 0:
                        console.print(f"{event.share:4.0%} {text}", soft_wrap=True)
                case Validated():
                    text = _validation(event, job.task.unit)
                    console.print(text, soft_wrap=True)
                    job.run.note(text)
                case Straggler():
                    console.print(event.sentence, soft_wrap=True)
                    job.run.note(event.sentence)
                case Sampled():
                    console.rule(f"sample at step {event.step}", style="dim", align="left")
                    lines = event.text.strip().splitlines()[:6]
                    console.print("\n".join(line[:160] for line in lines), style="dim")
                    console.rule(style="dim")
                case Saved():
                    saved = event.folder
                    job.run.note(f"saved {saved.name}")
    if saved is None:
        console.print(
            f"{job.run.folder} is finished at step {job.progress.step}. Resume it with a longer "
            "--budget to train further."
        )
        return
    if job.progress.step:
        job.run.plot()
    if stop.is_set():
        _print_stopped(job, saved, console)
    else:
        _print_done(job, saved, console)


def _step(event: "Step", metrics: list[str], loss: float) -> str:
    values = metrics or [f"loss {loss:.3f}", f"{event.peak_share:.0%} of peak"]
    speed = f"{event.tokens_per_second:,.0f} tokens/s"
    return " · ".join([f"step {event.step}", *values, speed])


def _print_stopped(job: "Job", saved: Path, console: Console) -> None:
    from seq2chat.training.loop import is_over

    if is_over(job):
        console.print(f"Trained to the end and saved: {saved}. Only its last validation stopped.")
        console.print(f"To run it: {job.resume_command()}", soft_wrap=True)
    else:
        console.print(
            f"Stopped and saved at step {job.progress.step}. Resume with: {job.resume_command()}",
            soft_wrap=True,
        )


def _print_done(job: "Job", saved: Path, console: Console) -> None:
    from seq2chat.models.folder import COMMAND

    expected = job.recipe.expect
    for value, unit in (
        (expected.val_loss_per_character, "character"),
        (expected.val_loss, "token"),
    ):
        if value:
            console.print(f"Expected of the recipe: {value} per {unit} ({expected.machine}).")
    can_chat = job.recipe.method not in ("", "reward")
    command = "chat" if can_chat else COMMAND[job.model.config.objective]
    align = job.recipe.align
    start = f" --start {align.start}" if align is not None and align.method == "reward" else ""
    if warning := _overfitting(job):
        console.print(warning, soft_wrap=True)
    console.print(f"Done: {saved}\nTry: seq2chat {command} {job.run.folder}{start}", soft_wrap=True)


def _overfitting(job: "Job") -> str:
    """Return a warning if the validation loss of pretraining has risen since its minimum, or an
    empty string.

    The last validation is left out: it scores another part of the split.
    """
    if job.recipe.align is not None:
        return ""
    losses = [(m["val_loss"], m["step"]) for m in job.run.metrics() if "val_loss" in m][:-1]
    if not losses:
        return ""
    least, step = min(losses)
    last, _ = losses[-1]
    if last < least + RISEN:
        return ""
    return (
        f"The validation loss was lowest at step {step} ({least:.4f}) and rose to {last:.4f}: the "
        "model memorizes its text. A shorter --budget or more text gives a better one."
    )
