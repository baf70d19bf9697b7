"""`seq2chat info`: the machine, and what the package makes of it."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table


def info(
    *, as_json: Annotated[bool, Parameter(name="--json", negative="", help="print JSON")] = False
) -> None:
    """Measure this machine, and show what is chosen for it and why.

    Add the output to a report of a bug.
    """
    from seq2chat.inference.machine import describe

    console = Console(highlight=False)
    with Console(stderr=True).status("measuring"):
        facts = describe()
    if as_json:
        print(json.dumps(facts))
        return
    memory = facts["free_memory"]
    extras = [f"{name} {v}" if v else f"{name}: no" for name, v in facts["extras"].items()]
    rows = {
        "versions": f"seq2chat {facts['seq2chat']}, Python {facts['python']}, "
        f"torch {facts['torch']}, {facts['platform']}",
        "processor": facts["processor"],
        "device": f"{facts['device']}, {facts['machine']}",
        "free memory": "unknown" if memory is None else f"{memory / 1e9:.1f} GB",
        "matrix products": f"float32 {facts['fp32_flops'] / 1e9:,.0f} GFLOP/s, "
        f"bfloat16 {facts['bf16_flops'] / 1e9:,.0f} GFLOP/s",
        "memory bandwidth": f"{facts['bandwidth'] / 1e9:.1f} GB/s",
        "training computes in": f"{facts['precision']} ({facts['precision_reason']})",
        "a token is computed by": facts["decoding"],
        "extras": ", ".join(extras),
        "cache": facts["cache"],
    }
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
