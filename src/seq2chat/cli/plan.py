"""`seq2chat plan`: what a training run will take, before it is started."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.scale.plan import Plan

CAUSES = {
    "compute": "computation",
    "tensor": "exchange of activations (tensor)",
    "bubble": "waiting in the pipeline",
    "shard": "exchange of parameters (shard), not hidden",
    "data": "sum of gradients (data), not hidden",
    "update": "optimizer",
}
SHOWN = 5  # layouts
LATENCY_SECONDS = 0.05  # a step of fewer is mostly the start of kernels and collectives
WIDTH = 110  # columns of output that goes to no terminal

Source = Annotated[str, Parameter(help="preset such as gpt3-175b, recipe, .toml file or run")]
Size = int | None
Json = Annotated[bool, Parameter(name="--json", negative="", help="print one JSON object")]


def plan(
    source: Source,
    *,
    gpus: Annotated[
        str, Parameter(help='number and kind, such as "8xH100" [default: this machine, measured]')
    ] = "",
    data: Annotated[Size, Parameter(help="replicas of the model [default: the fastest]")] = None,
    shard: Annotated[Size, Parameter(help="ranks that share parameters and optimizer")] = None,
    tensor: Annotated[Size, Parameter(help="ranks that divide each matrix")] = None,
    pipeline: Annotated[Size, Parameter(help="ranks that divide the layers")] = None,
    interleave: Annotated[Size, Parameter(help="runs of layers per pipeline rank")] = None,
    micro_batch: Annotated[Size, Parameter(help="sequences per forward pass and rank")] = None,
    checkpointing: Annotated[
        Literal["auto", "on", "off"], Parameter(help="recompute blocks in the backward pass")
    ] = "auto",
    batch: Annotated[Size, Parameter(help="sequences per step, all ranks together")] = None,
    tokens: Annotated[str | None, Parameter(help='length of the run, such as "300B"')] = None,
    network: Annotated[float | None, Parameter(help="Gbit/s of one server to the others")] = None,
    price: Annotated[float | None, Parameter(help="your price of one GPU hour")] = None,
    electricity: Annotated[float | None, Parameter(help="your price of one kWh")] = None,
    checkpoint_seconds: Annotated[
        float, Parameter(help="time that training pauses for a checkpoint")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """Predict memory, speed and cost of training a GPT, and the fastest layout that fits.

    For example, `seq2chat plan gpt3-175b --gpus 1024xA100`. All numbers are modelled by closed
    forms, which docs/results/scale.md compares with published runs.
    """
    from seq2chat.scale.hardware import parse_cluster
    from seq2chat.scale.plan import require
    from seq2chat.scale.workload import find_workload

    prices = {"price": price, "electricity": electricity}
    for name, value in prices.items():
        check(value is None or value >= 0, f"--{name} is {value}; write 0 or more.")
    check(checkpoint_seconds > 0, "--checkpoint-seconds is not positive; write a time above 0.")
    sizes = {
        "data": data,
        "shard": shard,
        "tensor": tensor,
        "pipeline": pipeline,
        "interleave": interleave,
        "micro_batch": micro_batch,
    }
    fixed: dict[str, int | bool] = {k: v for k, v in sizes.items() if v is not None}
    for name, value in fixed.items():
        option = name.replace("_", "-")
        check(value > 0, f"--{option} is {value}; write a positive number.")
    if checkpointing != "auto":
        fixed["checkpointing"] = checkpointing == "on"
    workload = find_workload(source, batch, tokens)
    plans = require(workload, parse_cluster(gpus, network), fixed)
    if as_json:
        print(json.dumps(_values(plans, prices, checkpoint_seconds)))
    else:
        _show(plans, prices, checkpoint_seconds)


def _values(
    plans: "list[Plan]", prices: dict[str, float | None], checkpoint_seconds: float
) -> dict:
    """Return the fastest plan, and the sizes and times of the others, as JSON values."""
    best = plans[0]
    return {
        "modelled": True,
        "workload": best.workload.name,
        "gpus": str(best.cluster),
        "parameters": best.n_parameters,
        "batch": best.workload.batch,
        "tokens": best.workload.tokens,
        "step_flops": best.step_flops,
        "layout": vars(best.layout),
        "memory_bytes": best.memory,
        "memory_bytes_usable": best.memory_usable,
        "communication": [vars(t) | {"seconds": best.seconds_of(t)} for t in best.traffic],
        "step_seconds": best.step,
        "mfu": best.mfu,
        "tokens_per_second": best.tokens_per_second,
        "days": best.days,
        "gpu_hours": best.gpu_hours,
        "megawatt_hours": best.megawatt_hours,
        "cost": _cost(best, prices),
        "checkpoint_bytes": best.checkpoint_bytes,
        "checkpoint_interval_seconds": best.checkpoint_interval(checkpoint_seconds),
        "limit": best.limit,
        "layouts": [
            vars(p.layout)
            | {"step_seconds": p.step_seconds, "memory_bytes": p.memory_needed, "mfu": p.mfu}
            for p in plans
        ],
    }


def _cost(best: "Plan", prices: dict[str, float | None]) -> float | None:
    """Return the cost at the given prices, or None without one."""
    if prices["price"] is None and prices["electricity"] is None:
        return None
    hours = best.gpu_hours * (prices["price"] or 0.0)
    return hours + best.megawatt_hours * 1000 * (prices["electricity"] or 0.0)


def _show(plans: "list[Plan]", prices: dict[str, float | None], checkpoint_seconds: float) -> None:
    best = plans[0]
    workload = best.workload
    layout = best.layout
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(f"[bold]{workload.name}[/] on {best.cluster}: modelled, not measured\n")
    grid = _grid("the run", "")
    grid.add_row("parameters", f"{best.n_parameters:,}")
    grid.add_row(
        "batch", f"{workload.batch:,} sequences, {workload.batch_tokens:,} tokens per step"
    )
    grid.add_row(
        "length",
        f"{workload.tokens:.3g} tokens ({workload.tokens_from}), {workload.steps:,.0f} steps",
    )
    grid.add_row("training FLOPs", f"{best.step_flops * workload.steps:.3g}")
    grid.add_row("fastest layout", f"{layout}")
    grid.add_row("micro-batch", f"{layout.micro_batch} × {layout.micro_batches(workload.batch):,}")
    grid.add_row("checkpointing", "on: blocks are recomputed" if layout.checkpointing else "off")
    console.print(grid)
    grid = _grid("memory per GPU, modelled", "GB")
    for kind, size in best.memory.items():
        grid.add_row(kind, _amount(size / 1e9))
    grid.add_row("all", _amount(best.memory_needed / 1e9))
    grid.add_row("can be used", _amount(best.memory_usable / 1e9))
    console.print(grid)
    if best.traffic:
        grid = _grid("communication per step and GPU, modelled", "times", "GB", "seconds")
        for t in best.traffic:
            seconds = _amount(best.seconds_of(t))
            grid.add_row(f"{t.kind}, {t.axis}", f"{t.count:,}", _amount(t.size / 1e9), seconds)
        console.print(grid)
    grid = _grid("step, modelled", "seconds", "%")
    for cause, seconds in best.step.items():
        share = 100 * seconds / best.step_seconds
        if seconds:
            grid.add_row(CAUSES[cause], _amount(seconds), f"{share:.1f}")
    grid.add_row("all", _amount(best.step_seconds), "100.0")
    console.print(grid)
    console.print(_result(best, prices, checkpoint_seconds))
    if len(plans) > 1:
        grid = _grid(f"layouts that fit: {len(plans):,}, modelled", "s per step", "MFU %", "GB")
        for p in plans[:SHOWN]:
            saves = ", checkpointing" if p.layout.checkpointing else ""
            grid.add_row(
                f"{p.layout}, micro-batch {p.layout.micro_batch}{saves}",
                _amount(p.step_seconds),
                f"{100 * p.mfu:.1f}",
                _amount(p.memory_needed / 1e9),
            )
        console.print(grid)
    console.print(
        f"A step is limited by {CAUSES[best.limit]}. A checkpoint has "
        f"{_amount(best.checkpoint_bytes / 1e9)} GB."
    )
    if best.step_seconds < LATENCY_SECONDS:
        console.print("Latency is not modelled, and it dominates steps as short as this one.")
    if workload.matrices == "muon" and best.cluster.n_gpus > 1:
        console.print("Muon's exchange of whole matrices among ranks is not modelled.")


def _result(best: "Plan", prices: dict[str, float | None], checkpoint_seconds: float) -> Table:
    grid = _grid("result, modelled", "")
    grid.add_row("MFU", f"{100 * best.mfu:.1f} %")
    grid.add_row("tokens per second", f"{best.tokens_per_second:,.0f}")
    grid.add_row("days", f"{best.days:,.1f}" if best.days >= 0.1 else f"{best.days:.2g}")
    grid.add_row(
        "GPU hours", f"{best.gpu_hours:,.0f}" if best.gpu_hours >= 10 else f"{best.gpu_hours:.2g}"
    )
    if best.cluster.hardware.watts:
        grid.add_row("energy of the GPUs", f"{_amount(best.megawatt_hours)} MWh at rated power")
    cost = _cost(best, prices)
    if cost is not None:
        grid.add_row("cost at your prices", f"{cost:,.0f}")
    if best.cluster.hardware.watts:
        interval = best.checkpoint_interval(checkpoint_seconds) / 60
        grid.add_row(
            "checkpoint every",
            f"{interval:,.0f} minutes (Young), for a pause of {checkpoint_seconds:g} s "
            f"and a failure per {best.failure_hours:,.0f} hours",
        )
    return grid


def _amount(number: float) -> str:
    """Return a number with two decimal places, or with two digits if it is small."""
    return f"{number:,.2f}" if number >= 0.1 else f"{number:.2g}"


def _grid(title: str, *columns: str) -> Table:
    grid = Table(box=None, pad_edge=False)
    grid.add_column(title, style="", min_width=44)
    for column in columns:
        grid.add_column(column, justify="right" if column else "left")
    return grid
