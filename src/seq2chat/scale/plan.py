"""Will it fit, how long will it take, and what limits it: a training run by closed forms."""

import math
from dataclasses import dataclass, replace

from seq2chat.config import UserError
from seq2chat.scale.collectives import Traffic
from seq2chat.scale.communication import communication
from seq2chat.scale.hardware import Cluster
from seq2chat.scale.layout import Layout, layouts
from seq2chat.scale.memory import memory
from seq2chat.scale.stage import Stage, model_flops, n_parameters, stages
from seq2chat.scale.workload import Workload

# The share of peak FLOP/s that a rank reaches while it computes. Fitted to one published run, 175B
# on 384 A100 at 153 TFLOP/s (Narayanan et al. 2021, table 2), and tested on the others
# (docs/results/scale.md).
EFFICIENCY = 0.56
# The share of a GPU's memory that tensors can use. Contexts, communication buffers and
# fragmentation take the rest. A rule of thumb, and no measurement.
USABLE = 0.9
# Bytes per parameter that AdamW reads and writes: weights, moments (both ways) and gradients.
UPDATE_BYTES = 28
# One interruption per 50,600 GPU hours: 419 unexpected ones in 54 days on 16,384 GPUs (Grattafiori
# et al. 2024, "The Llama 3 Herd of Models", section 3.3.4).
GPU_HOURS_PER_FAILURE = 54 * 24 * 16_384 / 419


@dataclass(frozen=True)
class Plan:
    """A modelled run. Times are in seconds, memory in bytes per rank of the fullest stage.

    `step` divides the seconds of an optimizer step by cause: compute, tensor (exchanges of
    activations), bubble (waiting in the pipeline), shard and data (the exchanges of parameters and
    gradients that computation does not hide), update.
    """

    workload: Workload
    cluster: Cluster
    layout: Layout
    memory: dict[str, float]
    traffic: list[Traffic]
    step: dict[str, float]

    @property
    def n_parameters(self) -> int:
        return n_parameters(self.workload.model)

    @property
    def memory_needed(self) -> float:
        return sum(self.memory.values())

    @property
    def memory_usable(self) -> float:
        return USABLE * self.cluster.hardware.memory

    @property
    def fits(self) -> bool:
        return self.memory_needed <= self.memory_usable

    @property
    def step_flops(self) -> float:
        """Model FLOPs of a step, without recomputation."""
        return float(model_flops(self.workload.model)) * self.workload.batch_tokens

    @property
    def step_seconds(self) -> float:
        return sum(self.step.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization (Chowdhery et al. 2022, section 4.1)."""
        peak = self.cluster.hardware.peak_flops * self.cluster.n_gpus
        return self.step_flops / self.step_seconds / peak

    @property
    def tokens_per_second(self) -> float:
        return self.workload.batch_tokens / self.step_seconds

    @property
    def days(self) -> float:
        return self.workload.tokens / self.tokens_per_second / 86400

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.cluster.n_gpus

    @property
    def megawatt_hours(self) -> float:
        """Energy of the GPUs alone at their rated power. Servers and cooling come on top."""
        return self.gpu_hours * self.cluster.hardware.watts / 1e6

    @property
    def checkpoint_bytes(self) -> float:
        """Float32 weights and optimizer state of all ranks."""
        whole = Stage(self.workload.model, Layout(), 0)
        kinds = memory(whole, self.workload.batch, self.workload.matrices)
        return kinds["parameters"] + kinds["optimizer"]

    @property
    def failure_hours(self) -> float:
        """Mean hours between interruptions."""
        return GPU_HOURS_PER_FAILURE / self.cluster.n_gpus

    def checkpoint_interval(self, pause: float) -> float:
        """Return the seconds between checkpoints that lose the least time, √(2 · pause · mean time
        between failures) (Young 1974)."""
        return math.sqrt(2 * pause * self.failure_hours * 3600)

    @property
    def limit(self) -> str:
        """The cause that takes the largest share of a step."""
        return max(self.step, key=lambda cause: self.step[cause])

    def seconds_of(self, traffic: Traffic) -> float:
        """Return the seconds of collectives alone, whether or not computation hides them."""
        layout = self.layout
        stride = 1
        for axis in ("tensor", "shard", "data", "pipeline"):
            size = getattr(layout, axis)
            if axis == traffic.axis:
                break
            stride *= size
        if traffic.kind == "send":
            return self.cluster.send_seconds(traffic.size, stride)
        both_ways = 2 if traffic.kind == "all-reduce" else 1
        return both_ways * self.cluster.gather_seconds(traffic.size, size, stride)


@dataclass(frozen=True)
class Choice:
    """All layouts that were compared: those that fit, the fastest first, and the smallest that
    doesn't."""

    fitting: list[Plan]
    nearest: Plan | None = None


def plan(workload: Workload, cluster: Cluster, layout: Layout) -> Plan:
    """Return the modelled run. Raises UserError if the layout doesn't divide it evenly."""
    layout.check(workload.model, workload.batch, cluster.n_gpus)
    hardware = cluster.hardware
    size = hardware.activation_bytes
    both = stages(workload.model, layout)
    kinds = [memory(stage, workload.batch, workload.matrices, size) for stage in both]
    made = Plan(
        workload,
        cluster,
        layout,
        memory=max(kinds, key=lambda kind: sum(kind.values())),
        traffic=communication(both[0], workload.batch, size),
        step={},
    )
    made.step.update(_step(made, both))
    return made


def _step(made: Plan, both: list[Stage]) -> dict[str, float]:
    """Return the seconds of a step by cause."""
    layout = made.layout
    hardware = made.cluster.hardware
    micro_batches = layout.micro_batches(made.workload.batch)
    by_axis = {"tensor": 0.0, "shard": 0.0, "data": 0.0, "pipeline": 0.0}
    for traffic in made.traffic:
        by_axis[traffic.axis] += made.seconds_of(traffic)
    flops = max(stage.flops() for stage in both)
    compute = micro_batches * flops / (hardware.peak_flops * EFFICIENCY)
    # One micro-batch, and the whole step without waiting.
    busy = compute + by_axis["tensor"]
    one = busy / micro_batches
    # The first and last micro-batch pass through an otherwise idle pipeline (Narayanan et al. 2021,
    # section 2.2.2). Sends are hidden unless they take longer than the computation.
    bubble = (layout.pipeline - 1) / layout.interleave * one
    bubble += max(0.0, by_axis["pipeline"] - busy)
    # Parameters are gathered while other layers compute. Where that happens once per step, only one
    # micro-batch can hide it. The sum over replicas comes last, behind the last micro-batch.
    hidden = one if layout.keeps_gathered else busy
    shard = max(0.0, by_axis["shard"] - hidden)
    left = max(0.0, one - by_axis["shard"]) if layout.keeps_gathered else one
    stored = max(stage.parameters for stage in both) / layout.shard
    return {
        "compute": compute,
        "tensor": by_axis["tensor"],
        "bubble": bubble,
        "shard": shard,
        "data": max(0.0, by_axis["data"] - left),
        "update": UPDATE_BYTES * stored / hardware.bandwidth,
    }


def choose(workload: Workload, cluster: Cluster, fixed: dict[str, int | bool]) -> Choice:
    """Return all layouts that agree with the sizes in `fixed`, and divide GPUs, model and batch.

    Raises UserError if there is none.
    """
    fixed = dict(fixed)
    if workload.checkpointing:
        fixed.setdefault("checkpointing", True)
    per_server = min(cluster.hardware.per_server, cluster.n_gpus)
    candidates = layouts(workload.model, workload.batch, cluster.n_gpus, per_server, fixed)
    plans = [plan(workload, cluster, layout) for layout in candidates]
    if not plans:
        _check_sizes(workload, cluster, fixed)
        raise UserError(
            f"No layout divides {cluster.n_gpus:,} GPUs, {workload.model.n_layer} layers, "
            f"{workload.model.n_head} heads and a batch of {workload.batch:,} sequences evenly; "
            "change --gpus or --batch."
        )
    fitting = sorted((p for p in plans if p.fits), key=_rank)
    if fitting:
        return Choice(fitting)
    return Choice([], min(plans, key=lambda p: p.memory_needed))


def _rank(plan: Plan) -> tuple[float, int, int, float]:
    """Return the order of plans: by time, and among equally fast ones the simplest first."""
    layout = plan.layout
    seconds = float(f"{plan.step_seconds:.3g}")
    return seconds, layout.pipeline, layout.tensor, plan.step_seconds


def _check_sizes(workload: Workload, cluster: Cluster, fixed: dict[str, int | bool]) -> None:
    """Raise UserError if the sizes in `fixed` are the reason that no layout is possible."""
    if not fixed.keys() & {"data", "shard", "tensor", "pipeline", "micro_batch", "interleave"}:
        return
    layout = Layout(**fixed)  # pyrefly: ignore[bad-argument-type]
    if not fixed.keys() & {"data", "shard"} and layout.world > 0:
        layout = replace(layout, shard=max(1, cluster.n_gpus // layout.world))
    layout.check(workload.model, workload.batch, cluster.n_gpus)


def require(workload: Workload, cluster: Cluster, fixed: dict[str, int | bool]) -> list[Plan]:
    """Return the plans that fit, the fastest first.

    Raises UserError if none does, with the missing memory and the nearest layout or number of GPUs
    that fits.
    """
    choice = choose(workload, cluster, fixed)
    if choice.fitting:
        return choice.fitting
    nearest = choice.nearest
    assert nearest is not None
    missing = nearest.memory_needed - nearest.memory_usable
    problem = (
        f"{workload.name} does not fit {cluster}: {nearest.layout} needs "
        f"{gigabytes(nearest.memory_needed)} per GPU, {gigabytes(missing)} more than the "
        f"{gigabytes(nearest.memory_usable)} that can be used."
    )
    raise UserError(f"{problem} {_nearest_fit(workload, cluster, fixed)}")


def _nearest_fit(workload: Workload, cluster: Cluster, fixed: dict[str, int | bool]) -> str:
    """Return a sentence with the layout, or else the number of GPUs, that fits."""
    if fixed:
        freed = choose(workload, cluster, {})
        if freed.fitting:
            layout = freed.fitting[0].layout
            saves = " --checkpointing on" if layout.checkpointing else ""
            return (
                f"This fits: --data {layout.data} --shard {layout.shard} --tensor {layout.tensor} "
                f"--pipeline {layout.pipeline} --micro-batch {layout.micro_batch}{saves}."
            )
    hardware = cluster.hardware
    if hardware.link == 0:
        return "Make the model, its context or the batch smaller, or name GPUs with --gpus."
    n_gpus = cluster.n_gpus
    while n_gpus < 64 * 1024:
        n_gpus = n_gpus * 2
        bigger = Cluster(hardware, n_gpus, cluster.collectives)
        try:
            if choose(workload, bigger, {}).fitting:
                return f"It fits {n_gpus:,} × {hardware.name}."
        except UserError:
            continue
    return "No number of these GPUs fits it; choose GPUs with more memory."


def gigabytes(size: float) -> str:
    """Return a size in bytes as text, in units of 10⁹.

    >>> gigabytes(2.5e9)
    '2.5 GB'
    """
    return f"{size / 1e9:,.1f} GB"
