"""`seq2chat doctor`: which part of an alignment run is at fault."""

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
    data: Annotated[str, Parameter(help="held-out comparisons, where the data are your own")] = "",
    practice: Annotated[
        int, Parameter(help="iterations on the oracle's reward, in the world; 0 leaves them out")
    ] = 20,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print findings and verdict as JSON")
    ] = False,
) -> None:
    """Exchange one part after the other for one that is known to work, and name the first at
    fault."""
    from seq2chat.alignment.doctor import diagnose, verdict

    console, errors = (
        Console(highlight=False, soft_wrap=True),
        Console(stderr=True, highlight=False),
    )
    with errors.status("reading the run") as status:
        # Where no line can move, each part is named once.
        findings = diagnose(
            run, data, practice, status.update if errors.is_terminal else errors.print
        )
    if as_json:
        print(
            json.dumps(
                {"findings": [asdict(f) for f in findings], "verdict": verdict(findings)}, indent=1
            )
        )
        return
    for finding in findings:
        mark = "[green]sound[/]" if finding.sound else "[bold red]fault[/]"
        console.print(f"{mark}  [bold]{finding.part}[/]: {escape(finding.evidence)}")
    console.print(f"\n{escape(verdict(findings))}")
