"""`seq2chat models`: the published models that can be named instead of a folder."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table


def models(
    *, as_json: Annotated[bool, Parameter(name="--json", negative="", help="print JSON")] = False
) -> None:
    """List the published models that can be named.

    `chat`, `serve`, `generate`, `attention`, `export` and `--start` take these names.
    """
    from seq2chat.models.published import PUBLISHED

    rows = [
        {
            "name": model.name,
            "description": model.description,
            "megabytes": round(model.size / 1e6),
            "licence": model.licence,
            "installed": model.path is not None,
            "install": model.install,
        }
        for model in PUBLISHED.values()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("name", "description", "MB", "licence", "installed", box=None)
    for row in rows:
        how = "yes" if row["installed"] else str(row["install"])
        table.add_row(row["name"], row["description"], str(row["megabytes"]), row["licence"], how)
    console = Console()
    console.print(table)
    console.print(
        "You can also name any run, a model folder or a .gguf file.", style="dim", soft_wrap=True
    )
