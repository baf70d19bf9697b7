"""`seq2chat runs`: what was trained, how, and how well."""

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

Root = Annotated[Path, Parameter(help="folder that holds the runs")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="print JSON")]


@app.command(name="list")
def list_(root: Root = Path("runs"), *, as_json: AsJson = False) -> None:
    """List the runs in a folder with their last losses."""
    from seq2chat.training.run_folder import list_runs

    rows = [run.summary() for run in list_runs(root)]
    if as_json:
        print(json.dumps(rows))
        return
    check(bool(rows), f"There is no run in {root}; `seq2chat train` makes one.")
    _print_table(rows)


@app.command
def show(run: Annotated[Path, Parameter(help="run folder")], *, as_json: AsJson = False) -> None:
    """Show one run: configuration, last metrics, checkpoints, and its newest sample."""
    from seq2chat.training.run_folder import open_run

    log = open_run(run)
    config = (log.folder / "config.toml").read_text(encoding="utf-8")
    checkpoints = [str(c) for c in log.list_checkpoints()]
    if as_json:
        print(
            json.dumps(
                {**log.summary(), "config": tomllib.loads(config), "checkpoints": checkpoints}
            )
        )
        return
    _print_table([log.summary()])
    print(f"\n{config}\n" + "\n".join(checkpoints))
    if sample := log.newest_sample():
        print(f"\n{sample}")


@app.command
def compare(*runs: Annotated[Path, Parameter(help="run folders")], as_json: AsJson = False) -> None:
    """Compare runs: their losses, and the options in which they differ."""
    from seq2chat.training.run_folder import open_run

    check(len(runs) > 1, "Name at least two runs to compare.")
    logs = [open_run(run) for run in runs]
    tables = [
        tomllib.loads((log.folder / "config.toml").read_text(encoding="utf-8")) for log in logs
    ]
    flat = [
        {f"{t}.{k}": v for t, keys in table.items() for k, v in keys.items()} for table in tables
    ]
    different = sorted(
        key for key in set().union(*flat) if len({json.dumps(f.get(key)) for f in flat}) > 1
    )
    rows = [
        {**log.summary(), **{key: f.get(key) for key in different}}
        for log, f in zip(logs, flat, strict=True)
    ]
    if as_json:
        print(json.dumps(rows))
        return
    _print_table(rows, across=True)


def _print_table(rows: list[dict], across: bool = False) -> None:
    """One line a run, or one column a run where that reads better."""
    table = Table(box=None, header_style="bold")
    if across:
        table.add_column("")
        for row in rows:
            table.add_column(str(row["run"]), overflow="fold")
        for key in list(rows[0])[1:]:
            table.add_row(key, *(_text(row[key]) for row in rows))
    else:
        for key in rows[0]:
            table.add_column(key.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(_text(value) for value in row.values()))
    # A pipe has no width at which names would have to be broken.
    Console(highlight=False, width=None if sys.stdout.isatty() else 10_000).print(table)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if type(value) is int else "" if value is None else str(value)
