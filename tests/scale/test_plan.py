"""Closed forms of a plan against counts on models, and against published runs."""

import math
from dataclasses import replace

import pytest
import torch

from seq2chat.config import GPT3, GPTConfig, UserError
from seq2chat.models.gpt import GPT, flops_per_token
from seq2chat.scale.communication import communication
from seq2chat.scale.hardware import TABLE, Cluster, Hardware, parse_cluster
from seq2chat.scale.layout import Layout, divisors, layouts
from seq2chat.scale.memory import memory
from seq2chat.scale.plan import choose, plan, require
from seq2chat.scale.stage import Stage, n_parameters, stages
from seq2chat.scale.workload import find_workload

SMALL = GPTConfig("gpt2", vocab_size=1024, context=128, n_layer=4, n_head=8, d_model=64)
MODERN = GPTConfig("modern", vocab_size=1000, context=64, n_layer=3, n_head=4, d_model=32)
A100 = TABLE["A100"]
GPT3_175B = find_workload("gpt3-175b")


@pytest.mark.parametrize("config", [SMALL, MODERN, replace(MODERN, tie_embeddings=True)])
def test_parameters_are_those_of_the_model(config):
    with torch.device("meta"):
        expected = sum(p.numel() for p in GPT(config).parameters())
    assert n_parameters(config) == expected
    assert Stage(config, Layout(), 0).parameters == expected


def test_gpt3_has_the_parameters_and_flops_of_the_paper():
    """Brown et al. 2020, table D.1: 174,600 million parameters and 3.14e23 FLOPs."""
    assert n_parameters(GPT3["gpt3-175b"]) == 174_604_259_328
    assert pytest.approx(3.14e23, rel=0.002) == 6 * 174_604_259_328 * 300e9


@pytest.mark.parametrize(("checkpointing", "factor"), [(False, 72), (True, 96)])
def test_flops_are_those_of_narayanan(checkpointing, factor):
    """Narayanan et al. 2021, equation 3: 96 B s L h² (1 + s/6h + V/16Lh) with recomputation."""
    s = SMALL.context
    n = SMALL.n_layer
    h = SMALL.d_model
    v = SMALL.vocab_size
    expected = factor * s * n * h**2 * (1 + s / (6 * h) + v / (factor / 6 * n * h))
    stage = Stage(SMALL, Layout(checkpointing=checkpointing), 0)
    assert stage.flops() == pytest.approx(expected)


def test_ranks_together_have_the_whole_model():
    """Divided by tensor and pipeline, all stages have the model, and replicated vectors again."""
    layout = Layout(shard=2, tensor=4, pipeline=2)
    first, last = stages(SMALL, layout)
    split = 4 * (first.parameters + last.parameters)
    vectors = SMALL.n_layer * 6 * SMALL.d_model + 2 * SMALL.d_model  # norms, and biases of sums
    copied_head = SMALL.vocab_size * SMALL.d_model
    assert split == n_parameters(SMALL) + copied_head + 3 * vectors
    flops = 4 * (first.flops() + last.flops())
    assert flops == pytest.approx(flops_per_token(SMALL) * SMALL.context)


def test_memory_is_16_bytes_per_parameter_and_falls_with_shards():
    kinds = ("parameters", "gradients", "optimizer")
    one = memory(Stage(SMALL, Layout(), 0), 8)
    eight = memory(Stage(SMALL, Layout(shard=8), 0), 8)
    assert sum(one[k] for k in kinds) == 16 * n_parameters(SMALL)
    for kind in kinds:
        assert eight[kind] == pytest.approx(one[kind] / 8)
    muon = memory(Stage(SMALL, Layout(), 0), 8, "muon")
    matrices = SMALL.n_layer * 12 * SMALL.d_model**2
    assert one["optimizer"] - muon["optimizer"] == 4 * matrices


def test_checkpointing_keeps_less_and_a_pipeline_keeps_its_micro_batches():
    kept = memory(Stage(SMALL, Layout(), 0), 8)["activations"]
    saved = memory(Stage(SMALL, Layout(checkpointing=True), 0), 8)["activations"]
    assert saved < kept / 2
    layout = Layout(pipeline=4)
    by_stage = [memory(Stage(SMALL, layout, i), 8)["activations"] for i in range(4)]
    assert by_stage == pytest.approx([kept, 3 / 4 * kept, 2 / 4 * kept, kept / 4])


def test_a_ring_moves_what_the_model_says():
    """An all-gather step by step: in a ring of n ranks, each sends n - 1 pieces of size/n."""
    hardware = Hardware("x", 1.0, 1.0, 1.0, link=10.0, network=4.0, watts=1.0, per_server=4)
    assert Cluster(hardware, 4).gather_seconds(80.0, 4, 1) == pytest.approx(3 * (80 / 4) / 10)
    # 16 ranks in 4 servers: each server lacks 12/16 of the tensor, and has 4 bytes/s.
    assert Cluster(hardware, 16).gather_seconds(80.0, 16, 1) == pytest.approx(60 / 4)
    # Each GPU on its own, with a quarter of the server's network.
    flat = Cluster(hardware, 16, "flat")
    assert flat.gather_seconds(80.0, 16, 1) == pytest.approx(75 / 1)
    # Four groups of one rank per server share the network.
    assert Cluster(hardware, 16).gather_seconds(80.0, 4, 4) == pytest.approx(60 * 4 / 4)
    assert Cluster(hardware, 16).gather_seconds(80.0, 1, 4) == 0


def test_communication_of_sharding_grows_with_micro_batches_and_not_with_ranks():
    def shard_bytes(layout: Layout, batch: int) -> float:
        traffic = communication(Stage(SMALL, layout, 0), batch)
        return sum(t.size for t in traffic if t.axis == "shard")

    once = shard_bytes(Layout(shard=8), 8)
    ends = Stage(SMALL, Layout(), 0).end_parameters
    assert once == 2 * (2 * n_parameters(SMALL) - ends) + 4 * n_parameters(SMALL)
    assert shard_bytes(Layout(shard=4), 4) == once
    assert shard_bytes(Layout(shard=8), 24) == 3 * once
    piped = Layout(shard=8, pipeline=2)
    assert shard_bytes(piped, 8) == shard_bytes(piped, 24)


@pytest.mark.parametrize(("n_gpus", "published"), [(384, 84), (768, 43), (1536, 23)])
def test_days_of_megatron(n_gpus, published):
    """Narayanan et al. 2021, table 2. The efficiency was fitted to the first of them."""
    layout = Layout(data=n_gpus // 96, tensor=8, pipeline=12, checkpointing=True)
    assert plan(GPT3_175B, Cluster(A100, n_gpus), layout).days == pytest.approx(published, rel=0.03)


def test_pure_sharding_collapses():
    """Narayanan et al. 2021, table 2: from 768 to 1,536 GPUs, ZeRO-3 becomes no faster."""
    seconds = [
        plan(
            GPT3_175B,
            Cluster(A100, n, "flat"),
            Layout(shard=n, micro_batch=1536 // n, checkpointing=True),
        ).step_seconds
        for n in (384, 768, 1536)
    ]
    assert seconds[2] == pytest.approx(seconds[1], rel=0.01)
    assert seconds[1] > 0.7 * seconds[0]


def test_the_chosen_layout_fits_and_none_is_faster():
    workload = replace(GPT3_175B, batch=256)
    cluster = Cluster(A100, 128)
    plans = require(workload, cluster, {})
    assert all(p.memory_needed <= 0.9 * 80e9 for p in plans)
    # Equal to three digits, the simpler one comes first.
    order = [(float(f"{p.step_seconds:.3g}"), p.layout.pipeline, p.layout.tensor) for p in plans]
    assert order == sorted(order)
    every = list(layouts(workload.model, 256, 128, 8, {}))
    assert len(every) == len(set(every)) > len(plans)
    assert all(layout.world == 128 for layout in every)
    best = plans[0]
    assert best.mfu == pytest.approx(best.step_flops / best.step_seconds / (128 * A100.peak_flops))
    assert best.days * 86400 * best.tokens_per_second == pytest.approx(300e9)


def test_youngs_interval_loses_the_least():
    """The time lost per second of training, pause/t + t/(2 · mean time between failures), is least
    at the interval."""
    made = plan(GPT3_175B, Cluster(A100, 1024), Layout(shard=16, tensor=8, pipeline=8))
    between = made.failure_hours * 3600
    interval = made.checkpoint_interval(30)

    def lost(t: float) -> float:
        return 30 / t + t / (2 * between)

    assert lost(interval) < min(lost(0.9 * interval), lost(1.1 * interval))
    assert interval / 60 == pytest.approx(54, abs=1)
    assert made.checkpoint_bytes == 12 * 174_604_259_328


def test_divisors():
    assert divisors(97) == [1, 97]
    assert math.prod(divisors(12)) == 12**3


@pytest.mark.parametrize(
    ("text", "message"),
    [("8xH10", "Did you mean H100"), ("H100", "write a number and a name"), ("0xA100", "at least")],
)
def test_a_wrong_cluster(text, message):
    with pytest.raises(UserError, match=message):
        parse_cluster(text)


def test_a_network_is_per_server():
    assert parse_cluster("16xA100", network=400).hardware.network == 50e9
    assert parse_cluster("10_000xa100").n_gpus == 10_000


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"tensor": 7}, "96 heads cannot be divided"),
        ({"pipeline": 7}, "96 layers cannot be divided"),
        ({"shard": 3, "tensor": 8, "pipeline": 8}, "192 ranks, and the number of GPUs is 1,024"),
        ({"shard": 1024}, "batch of 1,536 sequences is not a multiple of 1,024"),
        (
            {"tensor": 8, "pipeline": 1, "shard": 1, "data": 128},
            "does not fit .* This fits: --data",
        ),
    ],
)
def test_wrong_sizes_are_named(fixed, message):
    with pytest.raises(UserError, match=message):
        require(GPT3_175B, Cluster(A100, 1024), fixed)


def test_the_number_of_gpus_that_fits_is_named():
    with pytest.raises(UserError, match=r"283\.9 GB more .* It fits \d+ × A100") as error:
        require(GPT3_175B, Cluster(A100, 8), {})
    n_gpus = int(str(error.value).split("It fits ")[1].split()[0])
    assert choose(GPT3_175B, Cluster(A100, n_gpus), {}).fitting
    assert not choose(GPT3_175B, Cluster(A100, n_gpus // 2), {}).fitting
