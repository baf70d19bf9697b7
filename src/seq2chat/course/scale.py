"""GPT-3 on ten thousand GPUs with 400 Gbit/s per server: why sharding alone cannot work there."""

from dataclasses import dataclass, replace
from typing import Literal

from matplotlib.figure import Figure

from seq2chat.course.lesson import COLORS, Cell, Lesson, Table, canvas, plain
from seq2chat.scale.communication import communication
from seq2chat.scale.hardware import TABLE, Cluster
from seq2chat.scale.layout import Layout
from seq2chat.scale.memory import memory
from seq2chat.scale.plan import EFFICIENCY, Plan, plan
from seq2chat.scale.stage import Stage
from seq2chat.scale.workload import Workload, find_workload

NETWORK = 400 / 8 * 1e9  # bytes/s of one server of 8 GPUs
LECTURE_GPUS = 10_000
SHARDED = (96, 192, 384, 768, 1536, 3072, 6144, LECTURE_GPUS)
# Numbers of GPUs that divide the batch, 8 tensor ranks and 12 pipeline ranks evenly, and
# have memory for the model.
DIVIDED = (192, 384, 768, 1536, 3072, 9216)


def lecture_cluster(
    n_gpus: int, collectives: Literal["hierarchical", "flat"] = "hierarchical"
) -> Cluster:
    """Return V100s with the lecture's network. The paper names the V100 (Brown et al. 2020, section
    2.3)."""
    return Cluster(replace(TABLE["V100"], network=NETWORK), n_gpus, collectives)


@dataclass(frozen=True)
class Sharded:
    """A step of sharding alone, in seconds: its computation, and its exchange of parameters through
    the network of the server, and through that of each GPU by itself."""

    n_gpus: int
    compute: float
    exchange: float
    flat: float


def sharded(workload: Workload, n_gpus: int) -> Sharded:
    """Return the seconds of a step if the batch could be divided among any number of GPUs."""
    stage = Stage(workload.model, Layout(checkpointing=True), 0)
    peak = n_gpus * TABLE["V100"].peak_flops
    moved = exchange_bytes(workload)
    return Sharded(
        n_gpus,
        compute=workload.batch * stage.flops() / (peak * EFFICIENCY),
        exchange=lecture_cluster(n_gpus).gather_seconds(moved, n_gpus, 1),
        flat=lecture_cluster(n_gpus, "flat").gather_seconds(moved, n_gpus, 1),
    )


def exchange_bytes(workload: Workload) -> float:
    """Return the bytes of parameters and gradients that pass each rank in a step: the least, with
    one forward and backward pass."""
    stage = Stage(workload.model, Layout(shard=workload.batch), 0)
    return sum(t.size for t in communication(stage, workload.batch) if t.axis == "shard")


def divided(workload: Workload, n_gpus: int) -> Plan:
    """Return the plan in which 8 GPUs of a server divide each matrix, and 12 servers the layers."""
    layout = Layout(shard=n_gpus // 96, tensor=8, pipeline=12, checkpointing=True)
    return plan(workload, lecture_cluster(n_gpus), layout)


def lesson() -> Lesson:
    """Return the time of a step of GPT-3 by cause, for two ways to divide it among servers."""
    workload = find_workload("gpt3-175b")
    alone = [sharded(workload, n) for n in SHARDED]
    others = [divided(workload, n) for n in DIVIDED]
    one = memory(Stage(workload.model, Layout(checkpointing=True), 0), workload.batch)
    needed: list[list[Cell]] = [[kind, size / 1e9] for kind, size in one.items()]
    moved = exchange_bytes(workload)
    useful = 3 / 4 * EFFICIENCY  # a quarter of the computation is repeated
    rows: list[list[Cell]] = [
        [
            f"{s.n_gpus:,} GPUs",
            s.compute,
            s.exchange,
            100 * useful * s.compute / max(s.compute, s.exchange),
            s.flat,
            100 * useful * s.compute / max(s.compute, s.flat),
        ]
        for s in alone
    ]
    divided_rows: list[list[Cell]] = [
        [
            f"{p.cluster.n_gpus:,} GPUs",
            p.step["compute"],
            p.step["tensor"],
            p.step["bubble"],
            p.step["shard"],
            p.step_seconds,
            100 * p.mfu,
            p.memory_needed / 1e9,
        ]
        for p in others
    ]
    tables = [
        Table("memory of GPT-3 on one GPU, modelled", ["", "GB"], needed, 1),
        Table(
            "sharding alone, if the batch could be divided: seconds per step, modelled",
            ["", "compute", "exchange", "MFU %", "exchange, each GPU by itself", "MFU %"],
            rows,
            1,
        ),
        Table(
            "tensor 8 × pipeline 12 × sharding: seconds per step, modelled",
            ["", "compute", "activations", "waiting", "parameters", "all", "MFU %", "GB per GPU"],
            divided_rows,
            1,
        ),
    ]
    last = alone[-1]
    largest = others[-1]
    notes = [
        (
            f"Sharding alone moves {moved / 1e9:,.0f} GB into every server in every step: the "
            "16-bit parameters twice, and the float32 gradients once. That takes "
            f"{last.exchange:.0f} s however many servers there are, so {workload.steps:,.0f} steps "
            f"take at least {last.exchange * workload.steps / 86400:.0f} days. The computation "
            f"would take {last.compute:.1f} s per step on {last.n_gpus:,} GPUs."
        ),
        (
            f"Nor can the batch be divided that far: it has {workload.batch:,} sequences, so "
            f"sharding alone has no work for {last.n_gpus - workload.batch:,} of the GPUs."
        ),
        (
            "Tensor ranks exchange activations inside of a server. Between servers, a pipeline "
            "sends one tensor per micro-batch, and each rank exchanges 1/96 of the model. On "
            f"{largest.cluster.n_gpus:,} GPUs a step takes {largest.step_seconds:.1f} s, which is "
            f"{largest.days:.0f} days. Waiting in the pipeline is the next limit."
        ),
        (
            "Erratum: 10,000 GPUs and 400 Gbit/s per server are those of the machine that "
            "Microsoft announced in May 2020. The paper says only that GPT-3 was trained on V100s "
            "in a part of such a machine."
        ),
    ]
    return Lesson("scale", tables, notes, _draw(workload.batch, alone, others))


def _draw(batch: int, alone: list[Sharded], others: list[Plan]) -> Figure:
    figure = canvas(8, 4.4)
    axes = figure.subplots()
    x = [s.n_gpus for s in alone]
    axes.plot(x, [s.compute for s in alone], color=COLORS[0], label="computation alone")
    axes.plot(
        x,
        [s.exchange for s in alone],
        color=COLORS[1],
        label="sharding: parameters and gradients, once per server",
    )
    axes.plot(
        x,
        [s.flat for s in alone],
        "--",
        color=COLORS[1],
        label="the same, each GPU by itself (ZeRO-3 in 2021)",
    )
    axes.plot(
        [p.cluster.n_gpus for p in others],
        [p.step_seconds for p in others],
        "o-",
        color=COLORS[2],
        label="tensor 8 × pipeline 12 × sharding: whole step",
    )
    axes.axvline(batch, color="gray", lw=0.8, ls=":")
    axes.annotate(f"{batch:,} sequences per batch", (1.03 * batch, 300), fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(x, [f"{n:,}" for n in x])
    axes.minorticks_off()
    title = "GPT-3 on V100s with 400 Gbit/s per server, modelled"
    plain(axes, title, "GPUs", "seconds per step")
    axes.legend(fontsize=8, frameon=False)
    return figure
