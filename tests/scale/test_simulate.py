"""One simulated rank against closed forms, and against a real process group's answers."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from seq2chat.config import GPTConfig, OptimConfig, UserError
from seq2chat.models.gpt import GPT
from seq2chat.scale.communication import communication
from seq2chat.scale.layout import Layout
from seq2chat.scale.memory import memory
from seq2chat.scale.simulate import simulate
from seq2chat.scale.stage import Stage

ADAMW = OptimConfig(matrices="adamw")
# A context beyond 512 uses fused attention, as on GPUs.
GPT2 = GPTConfig("gpt2", vocab_size=1024, context=1024, n_layer=2, n_head=4, d_model=64)
MODERN = replace(GPT2, layout="modern", tie_embeddings=False)
LLAMA = replace(MODERN, layout="llama")

LAYOUTS = [
    Layout(shard=8),
    Layout(shard=4, tensor=4),
    Layout(shard=4, tensor=2, checkpointing=True, micro_batch=2),
    Layout(data=2, shard=2, tensor=2, pipeline=2),
]


@pytest.mark.parametrize(
    ("config", "layout"),
    [*((GPT2, layout) for layout in LAYOUTS), (MODERN, LAYOUTS[1]), (LLAMA, LAYOUTS[3])],
    ids=str,
)
def test_the_code_communicates_as_the_closed_form_says(config, layout):
    result = simulate(config, layout, ADAMW)
    stage = Stage(config, layout, 0)
    batch = layout.data * layout.shard * layout.micro_batch
    forms = {(t.kind, t.axis): t for t in communication(stage, batch) if t.kind != "send"}
    counted = {(t.kind, t.axis): t for t in result.traffic}
    for key, form in forms.items():
        # The gradient norm is one more sum, of one number per parameter.
        norm = 1 if key[0] == "all-reduce" else 0
        assert counted[key].count - form.count in (0, norm), key
        assert counted[key].size == pytest.approx(form.size, rel=0.01, abs=400), key
    for key in counted.keys() - forms.keys():
        assert counted[key].count == 1, key
        assert counted[key].size < 400, key


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_bytes_are_those_of_this_rank(layout):
    result = simulate(GPT2, layout, ADAMW)
    batch = layout.data * layout.shard * layout.micro_batch
    form = memory(Stage(GPT2, layout, 0), batch)
    for kind in ("parameters", "gradients", "optimizer"):
        assert result.memory[kind] == pytest.approx(form[kind], rel=0.001), kind
    assert result.memory["parameters"] == 4 * result.parameters
    # Vectors that every tensor rank has are the only excess over an even division.
    assert 1 <= result.parameters / result.ideal < 1.02


@pytest.mark.parametrize("tensor", [1, 4])
def test_activations_are_those_that_blocks_keep(tensor):
    result = simulate(GPT2, Layout(shard=4, tensor=tensor), ADAMW)
    form = memory(Stage(GPT2, Layout(shard=4, tensor=tensor), 0), 4)
    last_norm = 2 * GPT2.context * GPT2.d_model / tensor
    indices = 2 * 8 * GPT2.context  # of tokens and positions
    expected = form["activations"] + last_norm + indices
    assert result.memory["activations"] == pytest.approx(expected, rel=0.002)


def test_one_rank_alone_has_the_whole_model():
    with torch.device("meta"):
        expected = sum(p.numel() for p in GPT(GPT2).parameters())
    result = simulate(GPT2, Layout(), ADAMW)
    assert result.parameters == result.ideal == expected
    assert result.memory["optimizer"] == 8 * expected


def test_a_layout_that_does_not_divide_is_refused_and_leaves_no_group():
    with pytest.raises(UserError, match="4 heads cannot be divided among --tensor 3"):
        simulate(GPT2, Layout(tensor=3), ADAMW)
    assert not dist.is_initialized()
