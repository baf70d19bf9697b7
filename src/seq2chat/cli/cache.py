"""`seq2chat cache`: the tokenized texts and downloads that are kept between runs."""

import json
from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from seq2chat.config import check

app = App(
    name="cache",
    help="List and clear the tokenized texts and downloads that are kept between runs.",
)


@app.command(name="list")
def list_(
    *, as_json: Annotated[bool, Parameter(name="--json", negative="", help="print JSON")] = False
) -> None:
    """List what is kept, largest first."""
    from seq2chat.text.cache import cached
    from seq2chat.text.named import cache_folder

    entries = sorted(cached(), key=lambda entry: -entry.size)
    if as_json:
        print(json.dumps([entry.as_dict() for entry in entries]))
        return
    table = Table("name", "text", "MB", "made", box=None)
    for entry in entries:
        made = datetime.fromtimestamp(entry.made).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.name, entry.text, f"{entry.size / 1e6:,.1f}", made)
    console = Console()
    console.print(table)
    console.print(
        f"{sum(entry.size for entry in entries) / 1e6:,.1f} MB in {cache_folder()}", soft_wrap=True
    )


@app.command
def clear(
    *names: Annotated[
        str, Parameter(help="entries to delete, by the names that `cache list` prints; none is all")
    ],
) -> None:
    """Delete what is kept. Runs that need a text again tokenize or download it again.

    Unfinished entries younger than a day are left alone, because a run may be writing them, unless
    they are named.
    """
    from seq2chat.text.cache import cached, remove

    entries = {entry.name: entry for entry in cached()}
    for name in names:
        check(
            name in entries,
            f"Nothing kept is called {name}; `seq2chat cache list` prints the names.",
        )
    in_use = [] if names else [entry for entry in entries.values() if entry.may_be_in_use]
    chosen = [entries[name] for name in names or entries if entries[name] not in in_use]
    for entry in chosen:
        remove(entry)
    if in_use:
        names_in_use = ", ".join(entry.name for entry in in_use)
        print(
            f"Left alone, because a run may be writing them: {names_in_use}. To delete one, "
            "name it."
        )
    print(
        f"Deleted {len(chosen)} of {len(entries)} entries, "
        f"{sum(entry.size for entry in chosen) / 1e6:,.1f} MB."
    )
