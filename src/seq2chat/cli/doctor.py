"""`seq2chat doctor`: find the faulty part of an alignment run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape


def doctor(
    run: Annotated[Path, Parameter(help="run of ppo or grpo, or the folder of a demo")],
    *,
    data: Annotated[
        str, Parameter(help="held-out comparisons, for a run on your own data", show_default=False)
    ] = "",
    practice: Annotated[
        int, Parameter(help="iterations with the world's exact reward; 0 skips this check")
    ] = 20,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print findings and verdict as JSON")
    ] = False,
) -> None:
    """Find the faulty part of an alignment run.

    Each part is replaced in turn by one that is known to work. The first part at fault is named.
    """
    from seq2chat.alignment.doctor import diagnose, verdict

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False)
    with errors.status("reading the run") as status:
        # Without a terminal there is no status line to update, so each part is printed once.
        progress = status.update if errors.is_terminal else errors.print
        findings = diagnose(run, data, practice, progress)
    if as_json:
        record = {"findings": [asdict(f) for f in findings], "verdict": verdict(findings)}
        print(json.dumps(record, indent=1))
        return
    for finding in findings:
        mark = "[green]sound[/]" if finding.sound else "[bold red]fault[/]"
        console.print(f"{mark}  [bold]{finding.part}[/]: {escape(finding.evidence)}")
    console.print(f"\n{escape(verdict(findings))}")
