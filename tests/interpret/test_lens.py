"""The logit lens and the direct attribution of a logit."""

import math

import pytest
import torch
from interpret.random_models import CONFIGS, random_model, reads_source
from interpret.test_trace import IDS, texts

from seq2chat.config import UserError
from seq2chat.interpret.attribution import attribution, matrix
from seq2chat.interpret.lens import lens, stream_sites
from seq2chat.interpret.patch import ablate
from seq2chat.interpret.trace import trace
from seq2chat.models.lora import add_lora
from seq2chat.nn.int8 import quantized

STREAMS = [name for name in CONFIGS if name not in ("additive", "lstm", "fixed")]
each_stream = pytest.mark.parametrize("name", STREAMS)


@each_stream
def test_the_lens_is_the_head_on_the_normalized_stream(name, monkeypatch):
    monkeypatch.setattr("seq2chat.interpret.lens.MAX_ROWS", 5)
    model = random_model(name)
    one = trace(model, *texts(model))
    found = lens(one, positions=(0, -1), top=4, target=7)
    n_branch = 3 if reads_source(model) else 2
    assert found.sites == stream_sites(model)
    assert (len(found.sites), found.positions) == (1 + 3 * n_branch, [0, 5])
    norm = {"gpt": "norm", "transformer": "decoder_norm"}.get(model.config.family)
    for row, site in enumerate(found.sites):
        x = one[site][[0, -1]][None]
        logits = model.logits(x if norm is None else model.get_submodule(norm)(x))[0]
        expected = logits.log_softmax(-1)
        torch.testing.assert_close(found.target[row], expected[:, 7])
        values, ids = expected.topk(4)
        assert torch.equal(found.ids[row], ids)
        torch.testing.assert_close(found.logprobs[row], values)
    torch.testing.assert_close(found.logprobs[-1, 1], one.logprobs(-1).topk(4).values)


@each_stream
@pytest.mark.parametrize("versus", [None, 3])
def test_the_parts_of_a_logit_sum_to_it(name, versus):
    model = random_model(name)
    one = trace(model, *texts(model))
    for position in (0, 4, -1):
        parts = attribution(one, 9, position, versus)
        logit = one.logits[position, 9] - (0 if versus is None else one.logits[position, versus])
        assert math.fsum(part.logit for part in parts) == pytest.approx(float(logit), abs=1e-12)
        assert parts[-1].site == "rest" and abs(parts[-1].logit) < 1e-11
    heads = [part for part in parts if part.head is not None]
    assert len(heads) == 3 * 4 * (2 if reads_source(model) else 1)
    kinds = {part.site for part in parts} - {part.site for part in heads}
    assert ("positions" in kinds) == (name != "grouped")


def test_the_parts_of_a_gpt_are_gradients_times_writes():
    """By hand: what a head wrote, times the gradient of the logit with the norm's scale fixed."""
    model = random_model("gpt2")
    one = trace(model, IDS)
    stream = one["layers.2"][-1]
    std = (stream.var(unbiased=False) + model.norm.eps).sqrt()
    rows = (model.head_weight[9] * model.norm.weight / std).detach()
    direction = rows - rows.mean()
    by_site = {(p.site, p.head): p.logit for p in attribution(one, 9)}
    mlp = float(one["layers.1.mlp"][-1] @ direction)
    assert by_site["layers.1.mlp", None] == pytest.approx(mlp)
    attention = model.layers[1].self_attn
    only = torch.zeros(16, dtype=torch.float64)
    only[8:12] = one["layers.1.self_attn.heads.context"][-1, 2]
    head = float(((attention.o_proj(only) - attention.o_proj.bias) @ direction).detach())
    assert by_site["layers.1.self_attn.heads.context", 2] == pytest.approx(head)
    token = float((model.embed_tokens.weight[IDS[-1]] @ direction).detach())
    assert by_site["embedding", None] == pytest.approx(token)
    position = float((model.embed_positions.weight[5] @ direction).detach())
    assert by_site["positions", None] == pytest.approx(position)


def test_quantized_and_adapted_weights_are_attributed():
    model = random_model("gpt2").float()
    add_lora(model, 2, 4.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    one = trace(model, IDS)
    assert abs(attribution(one, 9)[-1].logit) < 1e-4
    linear = random_model("gpt2").layers[0].mlp.up_proj.float()
    x = torch.randn(3, 16)
    torch.testing.assert_close(x @ matrix(quantized(linear)).T, quantized(linear)(x) - linear.bias)


def test_interventions_are_in_the_rest():
    """A head's context was read, but its write was switched off with the branch's output."""
    model = random_model("gpt2")
    one = trace(model, IDS, interventions=[ablate("layers.0.self_attn")])
    parts = attribution(one, 9)
    off = [p.logit for p in parts if p.site.startswith("layers.0.self_attn")]
    assert parts[-1].logit == pytest.approx(-math.fsum(off))
    assert math.fsum(p.logit for p in parts) == pytest.approx(float(one.logits[-1, 9]))


def test_an_rnn_has_neither():
    model = random_model("additive")
    one = trace(model, *texts(model))
    with pytest.raises(UserError, match="A seq2seq has no residual stream"):
        lens(one)
    with pytest.raises(UserError, match="logits of a seq2seq are not a sum"):
        attribution(one, 9)


def test_positions_and_tokens_that_do_not_exist():
    one = trace(random_model("gpt2"), IDS)
    with pytest.raises(UserError, match="has no position 6; they are 0 to 5"):
        lens(one, [6])
    with pytest.raises(UserError, match="The vocabulary has no token 31; they are 0 to 30"):
        attribution(one, 31)
