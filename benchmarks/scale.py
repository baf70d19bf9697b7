"""The closed forms of `seq2chat plan` against published runs, and against simulated ranks.

    python benchmarks/scale.py > docs/results/scale.md

Nothing is measured on GPUs here. It takes about three minutes on two cores, most of them for the
simulation of all 96 layers of GPT-3; --no-simulation leaves that part out.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

from seq2chat.config import GPT3, GPTConfig, OptimConfig
from seq2chat.models.gpt import flops_per_token
from seq2chat.scale.communication import communication
from seq2chat.scale.hardware import TABLE, Cluster
from seq2chat.scale.layout import Layout
from seq2chat.scale.plan import EFFICIENCY, Plan, plan
from seq2chat.scale.simulate import simulate
from seq2chat.scale.stage import Stage, n_parameters
from seq2chat.scale.workload import Workload, find_workload

A100 = TABLE["A100"]
H100 = TABLE["H100"]
GPT3_RUN = find_workload("gpt3-175b")
PTD_P = "Narayanan et al. 2021, table 2"
MEGASCALE = "Jiang et al. 2024, table 2"


@dataclass(frozen=True)
class Row:
    """One published number beside ours."""

    run: str
    quantity: str
    published: float
    ours: float
    source: str
    note: str = ""

    @property
    def difference(self) -> float:
        return 100 * (self.ours / self.published - 1)


def megatron_days(parameters: float, tokens: float, n_gpus: int, teraflops: float) -> float:
    """Return 8 T P / (n X) in days, for runs that recompute blocks (Narayanan et al. 2021, equation
    4)."""
    return 8 * tokens * parameters / (n_gpus * teraflops * 1e12) / 86400


def gpt3(batch: int, vocab_size: int = 50_257) -> Workload:
    return replace(GPT3_RUN, model=replace(GPT3_RUN.model, vocab_size=vocab_size), batch=batch)


def recomputing_days(n_gpus: int, teraflops: float) -> float:
    """Return the days of 300 billion tokens of 175B, with blocks recomputed (Narayanan et al. 2021,
    equation 3)."""
    model = gpt3(1536, 51_200).model
    per_token = Stage(model, Layout(checkpointing=True), 0).flops() / model.context
    return per_token * 300e9 / (n_gpus * teraflops * 1e12) / 86400


def gpt2_like(**shape: int) -> GPTConfig:
    return GPTConfig("gpt2", **shape)


def closed_forms() -> Iterator[Row]:
    """Yield the rows in which the speed is known, and time, size or utilization follows."""
    small = gpt2_like(vocab_size=50257, context=1024, n_layer=12, n_head=12, d_model=768)
    # nanoGPT's notebook has no biases, and counts the weights of norms in its FLOPs.
    biases = 12 * 11 * 768 + 768
    norms = 25 * 768
    yield Row(
        "nanoGPT 124M", "parameters", 124_337_664, n_parameters(small) - biases, "sizing notebook"
    )
    flops = (flops_per_token(small) + 6 * norms) * 1024 / 1e9
    yield Row("nanoGPT 124M", "GFLOPs per sequence", 875.06, flops, "sizing notebook")
    size = n_parameters(GPT3["gpt3-175b"])
    yield Row("GPT-3 175B", "parameters (M)", 174_600, size / 1e6, "Brown et al. 2020, table D.1")
    yield Row("GPT-3 175B", "training FLOPs", 3.14e23, 6 * size * 300e9, "same")
    for n_gpus, teraflops, days in ((384, 153, 84), (768, 149, 43), (1536, 141, 23)):
        ours = recomputing_days(n_gpus, teraflops)
        yield Row(f"PTD-P 175B, {n_gpus} A100", "days", days, ours, PTD_P)
    for n_gpus, teraflops, days in ((384, 144, 90), (768, 88, 74), (1536, 44, 74)):
        ours = recomputing_days(n_gpus, teraflops)
        yield Row(f"ZeRO-3 175B, {n_gpus} A100", "days", days, ours, PTD_P)
    yield Row(
        "175B, 1,024 A100", "days", 34, megatron_days(175e9, 300e9, 1024, 140), "same, section 5.1"
    )
    yield Row(
        "OPT-175B, 992 A100", "days", 33, megatron_days(175e9, 300e9, 992, 147), "Zhang et al. 2022"
    )
    batch = 64 * 2048 * flops_per_token(GPT3["gpt3-175b"])
    mfu = 100 * batch / 13.75 / (64 * A100.peak_flops)
    yield Row("175B, 64 A100", "MFU % at 13.75 s", 51.4, mfu, "Korthikanti et al. 2022, table 5")
    megascale = replace(GPT3["gpt3-175b"], vocab_size=64_000)
    step = 6144 * 2048 * flops_per_token(megascale)
    for seconds, published in ((6.34, 55.2), (8.57, 41.2)):
        name = "MegaScale" if seconds == 6.34 else "Megatron-LM"
        mfu = 100 * step / seconds / (12_288 * A100.peak_flops)
        yield Row(f"{name} 175B, 12,288 A100", f"MFU % at {seconds} s", published, mfu, MEGASCALE)
    bloom = gpt2_like(vocab_size=250_880, context=2048, n_layer=70, n_head=112, d_model=14336)
    # BLOOM has no learned positions, and a norm after its embedding.
    size = n_parameters(bloom) - 2048 * 14336 + 2 * 14336
    yield Row("BLOOM 176B", "bf16 weights (GiB)", 329, 2 * size / 2**30, "BLOOM model card")
    yield Row("BLOOM 176B", "full checkpoint (TiB)", 2.3, 14 * size / 2**40, "BLOOM model card")


def fastest(workload: Workload, cluster: Cluster, layouts: list[Layout]) -> Plan:
    plans = [plan(workload, cluster, layout) for layout in layouts]
    return min(plans, key=lambda p: p.step_seconds)


def step_times() -> Iterator[Row]:
    """Yield the rows in which our model knows the machine and the layout, and not the speed."""
    megatron = gpt3(1536, 51_200)
    for n_gpus, published in ((384, 84), (768, 43), (1536, 23)):
        layout = Layout(data=n_gpus // 96, tensor=8, pipeline=12, checkpointing=True)
        made = plan(megatron, Cluster(A100, n_gpus), layout)
        note = "fitted" if n_gpus == 384 else ""
        yield Row(f"PTD-P 175B, {n_gpus} A100", "days", published, made.days, PTD_P, note)
    for n_gpus, published in ((384, 90), (768, 74), (1536, 74)):
        layout = Layout(shard=n_gpus, micro_batch=1536 // n_gpus, checkpointing=True)
        made = plan(megatron, Cluster(A100, n_gpus, "flat"), layout)
        yield Row(f"ZeRO-3 175B, {n_gpus} A100", "days", published, made.days, PTD_P, "flat")
    layout = Layout(tensor=8, pipeline=8, interleave=3)
    made = plan(gpt3(64, 51_200), Cluster(A100, 64), layout)
    source = "Korthikanti et al. 2022, table 5"
    yield Row("175B, 64 A100", "seconds per step", 13.75, made.step_seconds, source)
    for n_gpus, ours, megatron_lm in ((3072, 23.66, 29.02), (12_288, 6.34, 8.57)):
        layout = Layout(shard=n_gpus // 64, tensor=8, pipeline=8, interleave=6)
        made = plan(gpt3(6144, 64_000), Cluster(A100, n_gpus), layout)
        for name, seconds in (("Megatron-LM", megatron_lm), ("MegaScale", ours)):
            run = f"{name} 175B, {n_gpus:,} A100"
            yield Row(
                run, "seconds per step", seconds, made.step_seconds, MEGASCALE, "layout assumed"
            )
    for n_gpus, published in ((96, 47), (4608, 42)):
        layouts = [
            Layout(shard=n_gpus // (8 * p), tensor=8, pipeline=p, interleave=v)
            for p in (4, 6, 8, 12)
            for v in (1, 2, 4)
            if 96 % (p * v) == 0 and n_gpus % (8 * p) == 0
        ]
        layouts = [one for one in layouts if 1152 % one.shard == 0]
        made = fastest(gpt3(1152, 51_200), Cluster(H100, n_gpus), layouts)
        run = f"Megatron-Core 175B, {n_gpus:,} H100"
        yield Row(run, "MFU %", published, 100 * made.mfu, "its README", "layout searched")
    llama = GPTConfig(
        "llama",
        vocab_size=128_256,
        context=8192,
        n_layer=128,
        n_head=128,
        n_kv_head=8,
        d_model=16384,
        d_ff=53248,
    )
    for interleave, published in ((1, 100), (4, 128)):
        layout = Layout(shard=8, tensor=8, pipeline=8, checkpointing=True, interleave=interleave)
        made = plan(Workload("405B", llama, 256, 1e12, ""), Cluster(H100, 512), layout)
        kind = "interleaved " if interleave > 1 else ""
        yield Row(
            f"torchtitan 405B, 512 H100, {kind}1F1B",
            "tokens/s per GPU",
            published,
            made.tokens_per_second / 512,
            "its benchmarks, December 2024",
            "float8 and 500 W there",
        )


def print_table(rows: Iterator[Row]) -> None:
    print("| run | quantity | published | modelled | difference | source | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.run} | {row.quantity} | {row.published:,.9g} | {row.ours:,.4g} "
            f"| {row.difference:+.1f} % | {row.source} | {row.note} |"
        )


def print_simulations() -> None:
    columns = "layout|parameters of rank 0|over an even division|collectives|counted GB"
    columns += "|closed form GB|difference|seconds"
    print(f"| {columns.replace('|', ' | ')} |")
    print("|---" * 8 + "|")
    for layout in (Layout(shard=128, tensor=8), Layout(shard=16, tensor=8, pipeline=8)):
        result = simulate(GPT3["gpt3-175b"], layout, OptimConfig(matrices="adamw"))
        stage = Stage(GPT3["gpt3-175b"], layout, 0)
        forms = {(t.kind, t.axis): t.size for t in communication(stage, layout.shard)}
        excess = 100 * (result.parameters / result.ideal - 1)
        for traffic in result.traffic:
            form = forms.get((traffic.kind, traffic.axis))
            if form is None:
                continue
            print(
                f"| {layout} | {result.parameters:,} | {excess:.3f} % "
                f"| {traffic.count} × {traffic.kind}, {traffic.axis} | {traffic.size / 1e9:.4f} "
                f"| {form / 1e9:.4f} | {100 * (traffic.size / form - 1):+.2f} % "
                f"| {result.seconds:.0f} |"
            )


PAGE = """# Results: plans against published runs

Made by `benchmarks/scale.py`. Everything here is modelled, and nothing was measured on these
machines.

## Closed forms

The published speed goes in, and time, utilization or size comes out.
"""

STEPS = f"""
## Step times

Only the machine and the layout go in. One number was fitted, the share of the peak that computation
reaches: {EFFICIENCY}, from the first row. The other rows test it.
"""

ZERO = """
*flat*: each GPU receives every parameter through its own network port, as ZeRO-3 did in 2021. The
collapse is there: from 768 to 1,536 GPUs nothing becomes faster, because each step moves the whole
model three times, however many GPUs there are. The model takes each link at its rated speed, which
ZeRO-3 did not reach, so it is 17 % too fast here.

The step times are no more exact than that. MegaScale overlaps its exchanges of activations with
computation, which the model does not, and its attention is windowed. Torchtitan computes in float8
at a power limit of 500 W, so these rows agree by coincidence. Llama 3.1 405B has 126 layers, and
128 are modelled, as 126 are not a multiple of 8 stages. MegaScale publishes its six runs of layers
per stage, and 8 × 8 ranks for tensor and pipeline are assumed. For Megatron-Core, the fastest of
some layouts is taken.
"""

SIMULATED = """
## Simulated ranks

One rank of GPT-3 175B on 1,024 GPUs, executed by `seq2chat simulate` on a CPU: one micro-batch of
one sequence and one optimizer step. With a pipeline it is the first stage. Its sends are not
executed.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-simulation", action="store_true", help="leave the simulation out")
    options = parser.parse_args()
    print(PAGE)
    print_table(closed_forms())
    print(STEPS)
    print_table(step_times())
    print(ZERO.rstrip())
    if not options.no_simulation:
        print(SIMULATED)
        print_simulations()


if __name__ == "__main__":
    main()
