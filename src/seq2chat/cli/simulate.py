"""`seq2chat simulate`: one rank of a run on many GPUs, executed without them."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from seq2chat.cli.plan import Json, Source

if TYPE_CHECKING:
    from seq2chat.scale.layout import Layout
    from seq2chat.scale.simulate import Simulation


def simulate(
    source: Source,
    *,
    data: Annotated[int, Parameter(help="replicas of the model")] = 1,
    shard: Annotated[int, Parameter(help="ranks that share parameters and optimizer")] = 1,
    tensor: Annotated[int, Parameter(help="ranks that divide each matrix")] = 1,
    pipeline: Annotated[int, Parameter(help="ranks that divide the layers")] = 1,
    micro_batch: Annotated[int, Parameter(help="sequences per forward pass and rank")] = 1,
    checkpointing: Annotated[
        bool, Parameter(negative="", help="recompute blocks in the backward pass")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run one rank of many on this CPU, with the real training code and without memory.

    For example, `seq2chat simulate gpt3-175b --shard 128 --tensor 8` takes two or three minutes. It
    counts parameters, memory and collectives of one micro-batch and one optimizer step, and
    compares them with the closed forms of `seq2chat plan`.
    """
    from seq2chat.config import OptimConfig, check
    from seq2chat.scale.communication import communication
    from seq2chat.scale.layout import Layout
    from seq2chat.scale.simulate import simulate as run
    from seq2chat.scale.stage import Stage
    from seq2chat.scale.workload import find_workload

    layout = Layout(data, shard, tensor, pipeline, micro_batch, checkpointing)
    for name in ("data", "shard", "tensor", "pipeline", "micro_batch"):
        option = name.replace("_", "-")
        check(
            getattr(layout, name) > 0,
            f"--{option} is {getattr(layout, name)}; write a positive number.",
        )
    workload = find_workload(source)
    errors = Console(stderr=True, highlight=False)
    with errors.status(f"running rank 0 of {layout.world:,}"):
        result = run(workload.model, layout, OptimConfig(matrices="adamw"))
    # One micro-batch per rank.
    stage = Stage(workload.model, layout, 0)
    closed = communication(stage, data * shard * micro_batch)
    expected = {(t.kind, t.axis): t.size for t in closed}
    notes = _notes(layout, result, workload.matrices)
    if as_json:
        print(json.dumps(_values(layout, result, expected, notes)))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{source}[/], rank 0 of {layout.world:,}: {layout}\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("parameters of this rank")
    table.add_column("evenly divided", justify="right")
    table.add_column("more", justify="right")
    more = f"{100 * (result.parameters / result.ideal - 1):.3f} %"
    table.add_row(f"{result.parameters:,}", f"{result.ideal:,.0f}", more)
    console.print(table)
    table = Table("memory, counted", box=None, pad_edge=False)
    table.add_column("GB", justify="right")
    for kind, size in result.memory.items():
        table.add_row(kind, f"{size / 1e9:,.3f}")
    console.print(table)
    table = Table("collectives, counted", box=None, pad_edge=False)
    for column in ("times", "GB", "closed form", "difference"):
        table.add_column(column, justify="right")
    for t in result.traffic:
        form = expected.get((t.kind, t.axis))
        table.add_row(
            f"{t.kind}, {t.axis}",
            f"{t.count:,}",
            f"{t.size / 1e9:,.4f}",
            "" if form is None else f"{form / 1e9:,.4f}",
            "" if form is None else f"{100 * (t.size / form - 1):+.2f} %",
        )
    console.print(table)
    for note in notes:
        console.print(note)


def _notes(layout: "Layout", result: "Simulation", matrices: str) -> list[str]:
    """Return the limits of the simulation, in sentences."""
    notes = [
        f"Counted in {result.seconds:.0f} s on the running code. No number was computed, and no "
        "time can be read from it."
    ]
    if layout.pipeline > 1:
        notes.append(
            f"This is the first of {layout.pipeline} stages, with {result.layers} layers. Its "
            "sends and the schedule of micro-batches were not run; `seq2chat plan` has their "
            "closed forms."
        )
    if matrices != "adamw":
        notes.append("The optimizer is AdamW; the recipe's Muon is not simulated.")
    return notes


def _values(
    layout: "Layout",
    result: "Simulation",
    expected: dict[tuple[str, str], float],
    notes: list[str],
) -> dict[str, Any]:
    traffic = [vars(t) | {"closed_form": expected.get((t.kind, t.axis))} for t in result.traffic]
    values = vars(replace(result)) | {"traffic": traffic}
    return {"layout": vars(layout)} | values | {"notes": notes}
