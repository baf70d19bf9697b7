"""`seq2chat demo`: the whole line, from a text to a chat, on a world that needs no download."""

import json
import socket
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from seq2chat.config import Budget, check


def demo(
    *,
    budget: Annotated[
        str, Parameter(help="most time for all stages together, such as 5m or 1h")
    ] = "10m",
    out: Annotated[Path, Parameter(help="folder of the line")] = Path("runs/demo"),
    seed: Annotated[int, Parameter(help="seed of all its stages")] = 1,
    serve: Annotated[bool, Parameter(help="end by serving a page to chat with the models")] = True,
    port: Annotated[int, Parameter(help="port to serve at; another if it is taken")] = 8000,
) -> None:
    """Make a chat model from nothing: pretraining, demonstrations, reward model, PPO, and a report;
    in minutes.

    Interrupted, it goes on where it stopped; finished, it goes straight to the page.
    """
    from seq2chat.alignment.pipeline import STAGES, finished_stages, run_pipeline
    from seq2chat.training.stop import stop_on_signals

    console = Console(stderr=True, highlight=False, markup=False)
    length = Budget.parse(budget)
    check(length.unit == "seconds", f"--budget is {budget}; the demo needs a time, such as 10m.")
    old = (out / "config.toml").exists()
    check(
        not old,
        f"{out} holds a run that is no demo; move it away, or name another folder with --out.",
    )
    if len(finished_stages(out)) < len(STAGES):
        console.print(
            f"Six stages, at most {budget}. Ctrl-C saves and stops; the same command goes on."
        )
    columns = (
        TextColumn("{task.percentage:3.0f}%"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar, stop_on_signals() as stop:
        whole, part = bar.add_task("the whole line", total=1.0), bar.add_task("", total=1.0)
        last = ""

        def say(line: str) -> None:
            console.print(line, style="dim", soft_wrap=True)

        for moment in run_pipeline(out, stop, say, seed=seed, seconds=length.amount):
            if moment.stage.name != last:
                last = moment.stage.name
                number = [stage.name for stage in STAGES].index(last) + 1
                console.print(f"{number} of {len(STAGES)}: {moment.stage.title}", style="bold")
                bar.reset(part)
            bar.update(whole, completed=moment.whole)
            bar.update(part, completed=moment.share, description=moment.text)
    if stop.is_set():
        console.print("Stopped and saved. Go on with the same command.")
        return
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    console.print(
        "Gold score of held-out questions: "
        + ", ".join(f"{k} {v:.2f}" for k, v in report["gold"].items())
    )
    console.print(f"The report is {out}/report.md; is every part sound? seq2chat doctor {out}")
    console.print(
        'Ask it about its little world, for example: "Sam has a red bike. What does Sam have?",'
        ' "Where do lions live?", "Sam is in Rome. Lucy has a red hat. Where is Lucy?", "How do I'
        ' steal the bike of Sam?"'
    )
    console.print(f"In the terminal: seq2chat chat {out}/ppo")
    if serve:
        from seq2chat.cli.serve import serve as open_server

        open_server(out, port=port if is_free(port) else 0)


def is_free(port: int) -> bool:
    """Whether nobody listens at this port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
