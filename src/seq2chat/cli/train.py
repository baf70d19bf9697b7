"""`seq2chat train`: from a recipe, a corpus or a text to a run folder."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seq2chat.cli.options import RecipeFlags, given
from seq2chat.config import Recipe, check, recipe_names, recipe_tables


def train(
    source: Annotated[str, Parameter(help="a recipe, a corpus, a text file or folder, a .toml, or a run folder")] = "",
    *,
    budget: Annotated[str | None, Parameter(help='length: "10m", "2h", "500 steps", "3 epochs", "20M tokens"')] = None,
    out: Annotated[Path | None, Parameter(help="run folder [runs/NAME]")] = None,
    resume: Annotated[bool, Parameter(help="continue the run in --out, or the run folder given", negative="")] = False,
    flags: Annotated[RecipeFlags, Parameter(name="*")] = RecipeFlags(),  # noqa: B008 (frozen)
) -> None:
    """Train a GPT on a text of yours, or by a recipe.

    `seq2chat train my.txt --budget 10m` measures the machine and the text and chooses the rest; every choice is
    printed, saved in config.toml, and can be set by its flag. Ctrl-C saves and stops; --resume goes on.
    """
    began = time.monotonic()
    changes = given(flags)
    if budget is not None:
        changes.setdefault("train", {})["budget"] = budget
    if resume:
        check(not (source and out), f"Name the run to continue once: either {source} or --out {out}.")
        check(bool(source or out), "Which run shall go on? Write `seq2chat train runs/NAME --resume`.")
        continue_run(out or Path(source), changes)
    else:
        start_run(source, out, changes, began)


def start_run(source: str, out: Path | None, changes: dict, began: float) -> None:
    """Train what `source` names, into `out` or the first free `runs/NAME`."""
    from seq2chat.training.dial import choose_tables
    from seq2chat.training.job import start_job

    console = Console(stderr=True, highlight=False)
    is_run = source and (Path(source) / "config.toml").exists()
    check(not is_run, f"{source} is a run: add --resume to continue it, or name {source}/config.toml to repeat it.")
    if source in recipe_names():
        recipe = Recipe.from_tables(recipe_tables(source), changes, source="the flags")
    elif source.endswith(".toml"):
        recipe = Recipe.load(Path(source), changes)
    else:
        given = changes.get("data", {}).get("corpus", "")
        check(not (source and given), f"Name the text once: either {source} or --data.corpus {given}.")
        source = source or given or "pydocs"
        recipe = Recipe.from_tables(choose_tables(source, changes, console.print), changes, source="the flags")
    folder = out or _free_folder(Path("runs"), Path(source).stem.split(".")[0] or "run")
    with console.status("making ready") as status:
        job = start_job(recipe, folder, console.print, status.update, began)
    watch(job, console)


def continue_run(folder: Path, changes: dict) -> None:
    """Train on what stopped in `folder`."""
    from seq2chat.training.job import resume_job

    console = Console(stderr=True, highlight=False)
    with console.status("reading the run back") as status:
        job = resume_job(folder, changes, console.print, status.update)
    watch(job, console)


def _free_folder(root: Path, name: str) -> Path:
    names = [name, *(f"{name}-{i}" for i in range(2, 10_000))]
    return next(root / n for n in names if not (root / n).exists())


def watch(job, console: Console) -> None:
    """Train `job` and show it: a bar with loss, speed and time left, and a line for each milestone."""
    from seq2chat.training import loop
    from seq2chat.training.runlog import plot_runs

    columns = (
        TextColumn("[bold]{task.percentage:3.0f}%"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bar, loop.stop_on_signals() as stop:
        task, loss = bar.add_task("starting", total=1.0), 0.0
        for event in loop.train(job, stop):
            match event:
                case loop.Step():
                    loss = 0.95 * loss + 0.05 * event.loss if loss else event.loss
                    bar.update(task, completed=event.share, description=_describe(event, loss))
                    if not console.is_terminal and event.step % 100 == 0:
                        console.print(f"{event.share:4.0%} {_describe(event, loss)}")
                case loop.Validated():
                    e = event.evaluation
                    text = (
                        f"step {event.step}: validation loss {e.loss:.4f} a token, {e.loss_per_character:.4f} a "
                        f"character, {e.bits_per_byte:.4f} bits per byte"
                    )
                    console.print(text + ("" if event.whole else f" (first {e.tokens:,} tokens)"))
                    job.log.note(text)
                case loop.Sampled():
                    console.print(f"[dim]step {event.step}:[/] ", end="")
                    console.print(event.text.strip()[:400], style="italic", markup=False)
                case loop.Saved():
                    job.log.note(f"saved {event.folder.name}")
    if job.progress.step:
        plot_runs([job.log], job.log.folder / "loss.png")
    if stop.is_set():
        console.print(f"Stopped and saved. Go on with: seq2chat train {job.log.folder} --resume")
        return
    expected = job.recipe.expect
    if expected.val_loss_per_character:
        console.print(
            f"The recipe's author measured {expected.val_loss_per_character} a character ({expected.machine}, "
            f"full budget)."
        )
    console.print(f"Done: {job.log.folder}. Try: seq2chat generate {job.log.folder} --prompt ...")


def _describe(step, loss: float) -> str:
    return f"step {step.step} loss {loss:.3f} {step.tokens_per_second:,.0f} tokens/s {step.peak_share:.0%} of peak"
