"""`seq2chat runs`: the configuration, losses and checkpoints of trained runs."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from seq2chat.config import check

app = App(name="runs", help="List, show and compare runs.")

Root = Annotated[Path, Parameter(help="folder that contains the runs")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="print JSON")]


@app.command(name="list")
def list_(root: Root = Path("runs"), *, as_json: AsJson = False) -> None:
    """List the runs in a folder with their last losses."""
    from seq2chat.training.run_folder import list_runs

    rows = [run.summary() for run in list_runs(root)]
    if as_json:
        print(json.dumps(rows))
        return
    check(bool(rows), f"There is no run in {root}; make one with `seq2chat train`.")
    _print_table(rows)


@app.command
def show(run: Annotated[Path, Parameter(help="run folder")], *, as_json: AsJson = False) -> None:
    """Show the configuration, last metrics, checkpoints and newest sample of a run."""
    from seq2chat.training.run_folder import open_run

    log = open_run(run)
    config = (log.folder / "config.toml").read_text(encoding="utf-8")
    checkpoints = [str(c) for c in log.list_checkpoints()]
    if as_json:
        record = log.summary() | {"config": tomllib.loads(config), "checkpoints": checkpoints}
        print(json.dumps(record))
        return
    _print_table([log.summary()])
    print(f"\n{config}\n" + "\n".join(checkpoints))
    if sample := log.newest_sample():
        print(f"\n{sample}")


@app.command
def compare(*runs: Annotated[Path, Parameter(help="run folders")], as_json: AsJson = False) -> None:
    """Compare the losses of runs, and the options in which they differ."""
    from seq2chat.training.run_folder import compare_runs, open_run

    check(len(runs) > 1, "Name at least two runs to compare.")
    rows = compare_runs([open_run(run) for run in runs])
    if as_json:
        print(json.dumps(rows))
        return
    _print_transposed(rows)


def _print_table(rows: list[dict]) -> None:
    """Print one line per run, without columns that are empty in all of them."""
    table = Table(box=None, header_style="bold")
    keys = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    for key in keys:
        table.add_column(key.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(row[key]) for key in keys))
    _wide_console().print(table)


def _print_transposed(rows: list[dict]) -> None:
    """Print one column per run, which fits many options."""
    table = Table("", box=None, header_style="bold")
    for row in rows:
        table.add_column(str(row["run"]), overflow="fold")
    for key in list(rows[0])[1:]:
        table.add_row(key, *(_text(row[key]) for row in rows))
    _wide_console().print(table)


def _wide_console() -> Console:
    # Output to a pipe is not wrapped, so that names stay whole.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if type(value) is int:  # not a bool
        return f"{value:,}"
    return "" if value is None else str(value)
