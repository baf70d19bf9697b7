import copy
import random

import pytest
import torch
from interpret.random_models import (
    CONFIGS,
    SOURCE,
    SOURCE_MASK,
    TARGET,
    forward,
    random_model,
    reads_source,
)
from torch import nn
from transformers import AutoModel

from seq2chat.config import UserError
from seq2chat.generation.beam import beam_search
from seq2chat.interpret.sites import sites
from seq2chat.interpret.tape import record
from seq2chat.models.folder import save_model

each = pytest.mark.parametrize("name", CONFIGS)
each_decoder = pytest.mark.parametrize("name", [name for name in CONFIGS if name != "bert"])
INNER = {
    "gpt": ["layers.*"],
    "transformer": ["decoder.*_attn", "decoder.*.mlp"],
    "seq2seq": ["decoder"],
}


def start(model, source=SOURCE, source_mask=SOURCE_MASK):
    return model.start(source, source_mask) if reads_source(model) else model.start()


def contents(tape):
    return tape.tensors | {m.path: m.weights for m in tape.attention}


def assert_equal_tapes(one, other, rows=slice(None)):
    one = contents(one)
    other = contents(other)
    assert one.keys() == other.keys()
    for site in one:
        torch.testing.assert_close(
            one[site], other[site][rows], rtol=1e-9, atol=1e-11, msg=lambda m, s=site: f"{s}: {m}"
        )


def is_clean(model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return hooks == 0 and not {"hidden", "start", "step"} & vars(model).keys()


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_recording_changes_no_bit(name, dtype):
    model = random_model(name).to(torch.float64 if dtype == torch.float64 else torch.float32)
    model.compute_dtype = dtype if dtype == torch.bfloat16 else None

    def results():
        logits = forward(model)
        model.zero_grad()
        logits.float().logsumexp(-1).sum().backward()
        return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    plain = results()
    with record(model) as tape:
        recorded = results()
    found = contents(tape)
    assert found.keys() == set(sites(model))
    assert not any(tensor.requires_grad for tensor in found.values())
    assert all(map(torch.equal, plain, recorded))
    assert all(map(torch.equal, plain, results()))


@each_decoder
def test_recording_changes_no_bit_of_decoding(name):
    model = random_model(name)

    def results():
        state = start(model)
        found = []
        for column in TARGET.split(1, dim=1):
            logits, state = model.step(column, state)
            found.append(logits)
            state.reorder(torch.tensor([2, 0, 1]))
        return found

    plain = results()
    with record(model):
        recorded = results()
    assert all(map(torch.equal, plain, recorded))


@pytest.mark.parametrize("name", ["gpt2", "banded", "grouped"])
def test_the_stream_is_the_sum_of_its_branches(name):
    model = random_model(name)
    with record(model) as tape:
        logits = forward(model)
    seen = tape.tensors
    stream = seen["layers.input"]
    for i in range(3):
        stream = stream + seen[f"layers.{i}.self_attn"] + seen[f"layers.{i}.mlp"]
        torch.testing.assert_close(seen[f"layers.{i}"], stream)
    assert torch.equal(model.norm(seen["layers.2"]), seen["norm"])
    assert torch.equal(model.logits(seen["norm"]), logits)
    if name == "grouped":
        assert torch.equal(seen["layers.input"], model.embed_tokens(TARGET))


def test_streams_end_in_the_hidden_states():
    model = random_model("pre")
    with record(model) as tape:
        hidden = model.hidden(SOURCE, TARGET, SOURCE_MASK)
    seen = tape.tensors
    branches = ("self_attn", "cross_attn", "mlp")
    stream = seen["decoder.input"] + sum(
        seen[f"decoder.{i}.{b}"] for i in range(3) for b in branches
    )
    torch.testing.assert_close(seen["decoder.2"], stream)
    assert torch.equal(model.encoder_norm(seen["encoder.2"]), seen["encoder_norm"])
    assert torch.equal(seen["decoder_norm"], hidden)
    bert = random_model("bert")
    with record(bert) as tape:
        hidden = bert.hidden(TARGET)
    block = bert.layers[1]
    seen = tape.tensors
    middle = block.self_attn_norm(seen["layers.0"] + seen["layers.1.self_attn"])
    torch.testing.assert_close(block.mlp_norm(middle + seen["layers.1.mlp"]), seen["layers.1"])
    assert torch.equal(seen["layers.2"], hidden)


@pytest.mark.parametrize("name", ["lstm", "additive"])
def test_additive_attention_as_the_paper_writes_it(name):
    model = random_model(name)
    with record(model) as tape:
        hidden = model.hidden(SOURCE, TARGET, SOURCE_MASK)
    (m,) = tape.attention
    seen = tape.tensors
    assert (m.path, m.kind, m.weights.shape) == ("decoder.attention", "additive", (3, 1, 6, 7))
    assert torch.equal(seen["decoder"], hidden)
    attention = model.decoder.attention
    query = seen["decoder.attention.query"]
    top = seen[f"decoder.cells.{model.config.n_layer - 1}"]
    assert torch.equal(query[:, 1:], top[:, :-1])
    assert torch.equal(
        seen["decoder"],
        model.decoder.readout(
            torch.cat([top, model.embed_tokens(TARGET), seen["decoder.attention.context"]], -1)
        ).tanh(),
    )
    w, u, v = (p.weight for p in (attention.q_proj, attention.k_proj, attention.score))
    for row, length in enumerate(SOURCE_MASK.sum(1).tolist()):
        annotations = seen["encoder"][row, :length]
        if model.config.reverse_source:
            annotations = annotations.flip(0)
        energies = torch.tanh(query[row] @ w.T + (annotations @ u.T)[:, None]) @ v[0]
        alpha = energies.exp() / energies.exp().sum(0)
        torch.testing.assert_close(m.weights[row, 0, :, :length], alpha.T)
        torch.testing.assert_close(seen["decoder.attention.context"][row], alpha.T @ annotations)
        assert (m.weights[row, 0, :, length:] == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "grouped", "bert"])
def test_maps_are_those_of_transformers(name, tmp_path):
    model = random_model(name)
    save_model(model, tmp_path)
    theirs = AutoModel.from_pretrained(
        tmp_path, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    with torch.no_grad(), record(model) as tape:
        forward(model)
        expected = theirs(TARGET, output_attentions=True).attentions
    assert [m.path for m in tape.attention] == [f"layers.{i}.self_attn.heads" for i in range(3)]
    # Qwen3's norms, rotation and softmax are rounded to float32 there.
    tolerance = 1e-5 if name == "grouped" else 1e-12
    for m, weights in zip(tape.attention, expected, strict=True):
        assert m.kind == "self"
        torch.testing.assert_close(m.weights, weights, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["pre", "post"])
def test_maps_of_a_transformer_are_those_of_torch(name):
    """Each layer's inputs are put into torch's own multi-head attention with the same weights."""
    model = random_model(name)
    inputs = {}
    layers = {
        path: m for path, m in model.named_modules() if path.endswith(("self_attn", "cross_attn"))
    }
    for path, layer in layers.items():
        for side in ("q_proj", "k_proj"):
            layer.get_submodule(side).register_forward_hook(
                lambda _, arguments, __, key=(path, side): inputs.__setitem__(key, arguments[0])
            )
    with record(model) as tape:
        forward(model)
    assert len(tape.attention) == len(layers) == 9
    assert [m.kind for m in tape.attention] == ["self"] * 3 + ["self", "cross"] * 3
    for m in tape.attention:
        path = m.path.removesuffix(".heads")
        layer = layers[path]
        peer = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
        projections = layer.q_proj, layer.k_proj, layer.v_proj
        peer.in_proj_weight.data = torch.cat([p.weight for p in projections])
        peer.in_proj_bias.data = torch.cat([p.bias for p in projections])
        query = inputs[path, "q_proj"]
        memory = inputs[path, "k_proj"]
        on_source = memory.shape[1] == SOURCE.shape[1]
        expected = peer(
            query,
            memory,
            memory,
            key_padding_mask=~SOURCE_MASK if on_source else None,
            attn_mask=None if on_source else torch.ones(6, 6, dtype=torch.bool).triu(1),
            average_attn_weights=False,
        )[1]
        torch.testing.assert_close(m.weights, expected, rtol=0, atol=1e-12)


def test_a_window_is_in_the_map():
    model = random_model("banded")
    with record(model) as tape:
        forward(model)
    dense, local, _ = (m.weights for m in tape.attention)
    i = torch.arange(6)[:, None]
    j = torch.arange(6)
    assert torch.equal(dense[0, 0] > 0, j <= i)
    assert torch.equal(local[0, 0] > 0, (j <= i) & (i - j < 4))
    # The weights are those with which the values were mixed: without 1/√d_head, as in GPT-Neo.
    block = model.layers[1]
    v = (
        block.self_attn.v_proj(block.input_layernorm(tape.tensors["layers.0"]))
        .unflatten(-1, (4, 4))
        .transpose(1, 2)
    )
    mixed = block.self_attn.o_proj((local @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, tape.tensors["layers.1.self_attn"])


@pytest.mark.parametrize("name", ["pre", "additive"])
def test_a_row_without_a_source_attends_to_nothing(name):
    model = random_model(name)
    mask = SOURCE_MASK.clone()
    mask[1] = False
    with record(model) as tape:
        forward(model, source_mask=mask)
    for m in tape.attention:
        assert m.weights.isfinite().all()
        over_source = m.kind != "self" or m.path.startswith("encoder")
        sums = m.weights.sum(-1)
        torch.testing.assert_close(
            sums, torch.ones_like(sums) * (mask.any(1) | (not over_source))[:, None, None]
        )


@each_decoder
def test_steps_join_to_the_forward_pass(name):
    model = random_model(name)
    with record(model) as whole:
        forward(model)
    with record(model) as tape:
        state = start(model)
        for portion in TARGET.split([1, 3, 1, 1], dim=1):
            _, state = model.step(portion, state)
    assert_equal_tapes(tape, whole)


@each_decoder
@pytest.mark.parametrize("seed", range(3))
def test_the_tape_follows_every_reordering(name, seed):
    """As a beam search does it: rows change places, are repeated and dropped between steps. Each
    row of the tape is then what forcing that row's tokens, after its own source, gives."""
    model = random_model(name)
    chance = random.Random(seed)
    tokens = TARGET[:, :1]
    origin = torch.arange(3)
    with record(model) as tape:
        state = start(model)
        for n_row in (3, 5, 4, 6, 2):
            _, state = model.step(tokens[:, -1:], state)
            rows = torch.tensor(chance.choices(range(len(tokens)), k=n_row))
            state.reorder(rows)
            new = torch.tensor([[chance.randrange(31)] for _ in range(n_row)])
            tokens = torch.cat([tokens[rows], new], dim=1)
            origin = origin[rows]
        _, state = model.step(tokens[:, -1:], state)
    with record(model) as forced:
        forward(model, tokens, SOURCE[origin], SOURCE_MASK[origin])
    assert_equal_tapes(tape, forced)


@pytest.mark.parametrize("name", ["grouped", "pre", "additive"])
def test_beam_search_records_its_best_hypothesis(name):
    """No token of the vocabulary ends a hypothesis, so that the winner is a row of the state when
    the search ends."""
    model = random_model(name)
    sources = [[3, 9, 4, 17, 8]] if reads_source(model) else None
    with record(model) as tape:
        best = beam_search(
            model, [[2]], 31, sources=sources, beam=4, max_length=6, length_penalty="none"
        )[0][0]
    read = torch.tensor([[2, *best.tokens[:-1]]])
    with record(model) as forced:
        forward(model, read, torch.tensor([[3, 9, 4, 17, 8]]), None)
    recorded = contents(tape)
    expected = contents(forced)
    by_site = torch.stack(
        [(recorded[site] - expected[site]).abs().flatten(1).amax(1) for site in expected]
    )
    nearest, second = by_site.amax(0).sort().values[:2]
    assert nearest < 1e-10 < second


def test_a_state_may_be_stepped_from_twice():
    model = random_model("additive")
    with record(model) as tape:
        _, first = model.step(TARGET[:, :2], start(model))
        model.step(TARGET[:, 4:], first)
        first.reorder(torch.tensor([1]))
        model.step(TARGET[1:2, 2:3], first)
    with record(model) as forced:
        forward(model, TARGET[1:2, :3], SOURCE[1:2], SOURCE_MASK[1:2])
    assert_equal_tapes(tape, forced)


def test_padding_in_front_of_a_prompt_is_in_its_place():
    model = random_model("gpt2")
    with record(model) as tape:
        model.step(torch.tensor([[0, 0, 5, 9], [4, 4, 4, 4]]), model.start(torch.tensor([2, 0])))
    with record(model) as alone:
        model(torch.tensor([[5, 9]]))
    for m, expected in zip(tape.attention, alone.attention, strict=True):
        torch.testing.assert_close(m.weights[0, :, 2:, 2:], expected.weights[0])
        assert (m.weights[0, :, 2:, :2] == 0).all()


def test_an_earlier_state_is_recorded_from_there_on():
    model = random_model("grouped")
    with record(model) as whole:
        forward(model)
    _, state = model.step(TARGET[:, :4], model.start())
    with record(model) as tape:
        model.step(TARGET[:, 4:], state)
    for m, expected in zip(tape.attention, whole.attention, strict=True):
        torch.testing.assert_close(m.weights, expected.weights[:, :, 4:])


@each_decoder
def test_the_recording_ends_with_its_block(name):
    model = random_model(name)
    before = None
    with pytest.raises(RuntimeError, match="stop here"), record(model) as tape:
        _, state = model.step(TARGET[:, :2], start(model))
        before = copy.deepcopy(contents(tape))
        raise RuntimeError("stop here")
    assert is_clean(model)
    state.reorder(torch.tensor([2, 2]))
    logits, _ = model.step(TARGET[[2, 2], 2:], state)
    expected = forward(model, TARGET[[2, 2]], SOURCE[[2, 2]], SOURCE_MASK[[2, 2]])
    torch.testing.assert_close(logits, expected[:, 2:])
    after = contents(tape)
    assert all(torch.equal(before[site], after[site]) for site in before)


@each_decoder
def test_recordings_may_be_nested(name):
    model = random_model(name)
    with record(model) as outer:
        _, state = model.step(TARGET[:, :1], start(model))
        with record(model, INNER[model.config.family]) as inner:
            _, state = model.step(TARGET[:, 1:3], state)
            state.reorder(torch.tensor([1, 0, 0]))
            _, state = model.step(TARGET[[1, 0, 0], 3:4], state)
        _, state = model.step(TARGET[[1, 0, 0], 4:], state)
        state.reorder(torch.tensor([2, 0]))
    assert is_clean(model)
    with record(model) as forced:
        forward(model, TARGET[[0, 1]], SOURCE[[0, 1]], SOURCE_MASK[[0, 1]])
    assert_equal_tapes(outer, forced)
    assert 0 < len(inner.tensors) < len(sites(model))
    for site, tensor in inner.tensors.items():
        torch.testing.assert_close(tensor, contents(forced)[site][[1, 0, 0], 1:4])


def test_only_what_is_asked_for_is_kept_and_where():
    model = random_model("pre")
    with record(model, ["decoder.*.cross_attn.heads", "encoder_norm"], device="meta") as tape:
        forward(model)
    assert list(tape.tensors) == ["encoder_norm"]
    assert [m.path for m in tape.attention] == [f"decoder.{i}.cross_attn.heads" for i in range(3)]
    assert all(tensor.is_meta for tensor in contents(tape).values())
    with (
        pytest.raises(UserError, match=r"no site decoder\.7\. Did you mean decoder\.\d"),
        record(model, ["decoder.7"]),
    ):
        pass
    assert is_clean(model)


def test_a_new_pass_begins_a_new_tape():
    model = random_model("gpt2")
    with record(model) as tape:
        forward(model)
        forward(model, TARGET[:1, :3])
    assert all(tensor.shape[0] == 1 for tensor in contents(tape).values())
    with record(model) as short:
        forward(model, TARGET[:1, :3])
    assert_equal_tapes(tape, short)
