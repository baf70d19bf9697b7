"""`seq2chat demo`: the whole pipeline, from a text to a chat, without a download."""

import json
import socket
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from seq2chat.config import Budget, check

SENTENCES = {
    "right": "{:.0%} of the answerable questions right",
    "honest": "{:.0%} honest where there is no answer",
    "harm": "{:.0%} of the harmful requests declined",
}
WORLD_EXAMPLES = """Ask about its little world, for example:
  "Julia is in Peru. Omar is in the library. Please say where Omar is."
  "Felix has a red shirt. Vera has a blue bell. What is it that Vera has?"
  "Noah is in Oslo. Ruth has a red plate. Where can I find Ruth?"
  "Please say how to smash the plate of Omar.\""""
TEXT_HINT = """The model is small. It can continue your text, and answer questions such as those in
the report, with a passage in the question. It does not understand the text as a large model does,
and what it says without a passage is often wrong."""


def demo(
    *,
    budget: Annotated[
        str, Parameter(help="time for all stages together, such as 5m or 1h")
    ] = "10m",
    text: Annotated[
        Path | None, Parameter(help="your own text instead of the built-in world")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="folder for the runs and the report [default: runs/demo, or runs/TEXT]"),
    ] = None,
    seed: Annotated[int, Parameter(help="seed of all stages")] = 1,
    serve: Annotated[bool, Parameter(help="serve a chat page at the end")] = True,
    port: Annotated[int, Parameter(help="port of the page, or a free one if it is taken")] = 8000,
) -> None:
    """Make a chat model from nothing in minutes.

    The stages are pretraining, fine-tuning on demonstrations, a reward model, PPO, and a report. If
    you stop the demo, the same command resumes it. Once it is finished, the command only serves the
    chat page.

    With --text, the model learns your text. Questions are made from its sentences by program.
    """
    from seq2chat.alignment.pipeline import STAGES, run_pipeline
    from seq2chat.training.run_folder import finished_stages
    from seq2chat.training.stop import stop_on_signals

    console = Console(stderr=True, highlight=False, markup=False)
    name = text.resolve().stem.split(".")[0] if text else "demo"
    out = out or Path("runs") / (name or "text")
    length = Budget.parse(budget)
    check(length.unit == "seconds", f"--budget is {budget}; the demo needs a time, such as 10m.")
    check(
        not (out / "config.toml").exists(),
        f"{out} contains a run that is not a demo; move it away, or name another folder with "
        "--out.",
    )
    if len(finished_stages(out)) < len(STAGES):
        console.print(
            f"Six stages, at most {budget}. Ctrl-C saves and stops; the same command resumes."
        )
    columns = (
        TextColumn("{task.percentage:3.0f}%"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar, stop_on_signals() as stop:
        pipeline_bar = bar.add_task("all stages", total=1.0)
        stage_bar = bar.add_task("", total=1.0)
        stage = ""

        def log(line: str) -> None:
            console.print(line, style="dim", soft_wrap=True)

        for moment in run_pipeline(out, stop, log, seed=seed, seconds=length.amount, text=text):
            if moment.stage.name != stage:
                stage = moment.stage.name
                number = [s.name for s in STAGES].index(stage) + 1
                console.print(f"{number} of {len(STAGES)}: {moment.stage.title}", style="bold")
                bar.reset(stage_bar)
            bar.update(pipeline_bar, completed=moment.whole)
            bar.update(stage_bar, completed=moment.share, description=moment.text)
    if stop.is_set():
        console.print("Stopped and saved. Run the same command to resume.")
        return
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    if "headlines" not in report:
        console.print(
            f"{out} was made by an older version, with another exam: its report has only gold "
            "scores. Remove the folder to make a new demo."
        )
    else:
        for model in ("base", "sft", "ppo"):
            shares = report["headlines"][model]
            known = [name for name in SENTENCES if name in shares]
            sentences = [SENTENCES[name].format(shares[name]["rate"]) for name in known]
            console.print(f"{model}: {', '.join(sentences)}")
    console.print(f"The report is {out}/report.md. To check every part: seq2chat doctor {out}")
    console.print(WORLD_EXAMPLES if text is None else TEXT_HINT)
    console.print(f"In the terminal: seq2chat chat {out}/ppo")
    if serve:
        from seq2chat.cli.serve import serve as open_server

        open_server(out, port=port if is_free(port) else 0)


def is_free(port: int) -> bool:
    """Return True if no program listens at this port on the loopback address."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
