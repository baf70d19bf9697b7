"""`seq2chat cache`: the tokenized texts and downloads that are kept between runs."""

import json
import shlex
from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from seq2chat.config import UserError, check

app = App(
    name="cache", help="List, verify or clear the tokenized texts and downloads kept between runs."
)


@app.command(name="list")
def list_(
    *, as_json: Annotated[bool, Parameter(name="--json", negative="", help="print JSON")] = False
) -> None:
    """List the cached entries, largest first."""
    from seq2chat.text.cache import cached
    from seq2chat.text.named import cache_folder

    entries = sorted(cached(), key=lambda entry: -entry.size)
    if as_json:
        print(json.dumps([entry.as_dict() for entry in entries]))
        return
    table = Table("name", "text", "MB", "made", box=None)
    for entry in entries:
        made = datetime.fromtimestamp(entry.made).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.name, entry.text, _megabytes(entry.size), made)
    console = Console()
    console.print(table)
    total = sum(entry.size for entry in entries)
    console.print(f"{_megabytes(total)} MB in {cache_folder()}", soft_wrap=True)


@app.command
def clear(
    *names: Annotated[
        str,
        Parameter(help="entries to delete, as `cache list` prints their names [default: all]"),
    ],
) -> None:
    """Delete cached entries. Runs that need a text again tokenize or download it again.

    Unfinished entries younger than a day are kept unless you name them, because a run may be
    writing them.
    """
    from seq2chat.text.cache import clear_cache

    cleared = clear_cache(names)
    if cleared.in_use:
        in_use = ", ".join(entry.name for entry in cleared.in_use)
        print(f"Kept, because a run may be writing them: {in_use}. To delete one, name it.")
    size = sum(entry.size for entry in cleared.deleted)
    print(f"Deleted {len(cleared.deleted)} of {cleared.n_entries} entries, {_megabytes(size)} MB.")


@app.command
def verify() -> None:
    """Read every byte of the tokenized texts, and compare it with the hash in their manifest.

    A run only samples them when it opens them. All texts are read, and the damaged ones named.
    """
    from seq2chat.text.cache import UNFINISHED, cached
    from seq2chat.text.shards import verify_shards

    entries = [
        entry
        for entry in cached()
        if entry.text != UNFINISHED and (entry.path / "manifest.json").is_file()
    ]
    damaged = []
    for entry in entries:
        try:
            print(f"{entry.name}: {_megabytes(verify_shards(entry.path))} MB, intact")
        except UserError as error:
            print(f"{entry.name}: {error}")
            damaged.append(entry.name)
    if not entries:
        print("The cache has no tokenized texts.")
    check(
        not damaged,
        f"{len(damaged)} of {len(entries)} texts can't be used; delete them, and the next run "
        f"tokenizes them again: seq2chat cache clear {shlex.join(damaged)}",
    )


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f}"
