import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seq2chat.config import Seq2SeqConfig, UserError
from seq2chat.models.seq2seq import Seq2Seq, reversed_order
from seq2chat.text.batch import Batch

SHAPE = {"vocab_size": 31, "d_embed": 6, "d_model": 8, "n_layer": 2}
CONFIGS = {
    "-".join(
        [cell, attention, "bi" if bidirectional else "uni", *["reversed"] * turned]
    ): Seq2SeqConfig(
        cell=cell, attention=attention, bidirectional=bidirectional, reverse_source=turned, **SHAPE
    )
    for cell, attention, bidirectional, turned in itertools.product(
        ("gru", "lstm"), ("fixed", "additive"), (True, False), (True, False)
    )
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
ONE = CONFIGS["gru-additive-bi"]


def random_model(config):
    """A float64 model whose every weight matters, in evaluation mode."""
    torch.manual_seed(0)
    model = Seq2Seq(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def pairs(batch=4, source_seq=7, seq=6):
    rng = torch.Generator().manual_seed(1)
    source, target = (torch.randint(31, (batch, n), generator=rng) for n in (source_seq, seq))
    return (
        source,
        target,
        torch.arange(source_seq) < torch.tensor([source_seq, 3, 1, 5])[:batch, None],
    )


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def peer_logits(model, source, target):
    """The logits of one pair by torch's own layers, the decoder run one step at a time over [E y;
    c]."""
    config, decoder = model.config, model.decoder
    lstm, parts = config.cell == "lstm", 2 if config.bidirectional else 1
    embedded = model.embed_tokens(source.flip(0) if config.reverse_source else source)
    annotations, last = model.encoder.rnn(embedded[None])  # unpacked: there is no padding
    hs = [part.unflatten(0, (2, parts)) for part in (last if lstm else (last,))]
    summary = torch.cat([*hs[0][-1]], dim=-1)
    h = torch.stack([torch.tanh(decoder.init_state[i](hs[0][i, -1])) for i in range(2)])
    c = torch.stack([decoder.init_cell[i](hs[1][i, -1]) for i in range(2)]) if lstm else None

    rnn = (nn.LSTM if lstm else nn.GRU)(6 + annotations.shape[-1], 8, 2, batch_first=True).double()
    flat = {
        "weight_ih_l0": torch.cat(
            [decoder.embed_gates.weight, decoder.context_gates.weight], dim=1
        ),
        "bias_ih_l0": decoder.embed_gates.bias,
        "weight_ih_l1": decoder.layer_gates[0].weight,
        "bias_ih_l1": decoder.layer_gates[0].bias,
    }
    for i, cell in enumerate(decoder.cells):
        flat |= {f"weight_hh_l{i}": cell.recurrent.weight, f"bias_hh_l{i}": cell.recurrent.bias}
    logits = []
    for y in model.embed_tokens(target):
        if config.attention == "additive":
            a = decoder.attention
            energies = a.score(torch.tanh(a.q_proj(h[-1]) + a.k_proj(annotations[0])))
            context = torch.softmax(energies, dim=0).T @ annotations[0]
        else:
            context = summary
        x = torch.cat([y[None], context], dim=-1)
        _, after = torch.func.functional_call(rnn, flat, (x[None], (h, c) if lstm else h))
        h, c = after if lstm else (after, None)
        readout = torch.tanh(decoder.readout(torch.cat([h[-1], x], dim=-1)))
        logits.append(readout @ model.head_weight.T)
    return torch.cat(logits)


@each_config
def test_logits_and_gradients_equal_torchs_layers(config):
    model, (source, target, mask) = random_model(config), pairs()
    weights = torch.randn(4, 6, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits = model(source, target, mask)
    gradients = torch.autograd.grad((logits * weights).sum(), list(model.parameters()))
    expected = torch.stack([peer_logits(model, source[b][mask[b]], target[b]) for b in range(4)])
    assert_equal(logits, expected)
    peers = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))
    for ours, peer in zip(gradients, peers, strict=True):
        torch.testing.assert_close(ours, peer, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gru-additive-bi", "lstm-fixed-uni-reversed"])
def test_training_equals_torchs_layers(name):
    """Three steps end in the same weights."""
    ours, peers = random_model(CONFIGS[name]), random_model(CONFIGS[name])
    source, target, mask = pairs()
    labels = target.roll(-1, 1)
    for model in (ours, peers):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            if model is ours:
                logits = model(source, target, mask)
            else:
                logits = torch.stack(
                    [peer_logits(model, source[b][mask[b]], target[b]) for b in range(4)]
                )
            F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
            optimizer.step()
    for after, peer, before in zip(
        *(m.parameters() for m in (ours, peers, random_model(CONFIGS[name]))), strict=True
    ):
        torch.testing.assert_close(after, peer, rtol=0, atol=1e-8)
        assert not after.equal(before)


@each_config
def test_decoding_step_by_step_equals_the_forward_pass(config):
    model, (source, target, mask) = random_model(config), pairs()
    state, steps = model.start(source, mask), []
    for portion in target.split([1, 1, 3, 1], dim=1):
        logits, state = model.step(portion, state)
        steps.append(logits)
    assert_equal(torch.cat(steps, dim=1), model(source, target, mask))


@each_config
def test_rows_do_not_depend_on_batch_or_padding(config):
    model, (source, target, mask) = random_model(config), pairs()
    expected = torch.cat(
        [model(source[b : b + 1, : mask[b].sum()], target[b : b + 1]) for b in range(4)]
    )
    assert_equal(model(source, target, mask), expected)
    padded, more = F.pad(source.masked_fill(~mask, 30), (0, 4), value=29), F.pad(mask, (0, 4))
    assert_equal(model(padded, F.pad(target, (0, 2)), more)[:, :6], expected)


@each_config
def test_logits_depend_on_past_target_and_whole_source(config):
    model, (source, target, mask) = random_model(config), pairs()
    before = model(source, target, mask)
    changed = target.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 31
    after = model(source, changed, mask)
    assert_equal(before[:, :3], after[:, :3])
    assert ((before - after)[:, 3:].abs().amax(-1) > 1e-6).all()
    for j in (0, 6):
        changed = source.clone()
        changed[0, j] = (changed[0, j] + 1) % 31
        assert ((before - model(changed, target, mask))[0].abs().amax(-1) > 1e-7).all()


@each_config
def test_rows_reorder_while_decoding(config):
    model, (source, target, mask) = random_model(config), pairs()
    _, state = model.step(target[:, :4], model.start(source, mask))
    rows = torch.tensor([3, 1, 1, 0, 2])
    state.reorder(rows)
    logits, _ = model.step(target[rows, 4:], state)
    assert_equal(logits, model(source, target, mask)[rows, 4:])


@each_config
def test_a_source_without_a_word_is_finite(config):
    model, (source, target, mask) = random_model(config), pairs()
    mask[2] = False
    logits = model(source, target, mask)
    logits.sum().backward()
    assert logits.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())
    assert_equal(logits[[0, 1, 3]], model(*pairs())[[0, 1, 3]])


@each_config
def test_reversed_source_keeps_alignments(config):
    model, (source, _, mask) = random_model(config), pairs()
    annotations = []
    model.decoder.attention.prepare = lambda *parts: (
        annotations.append(parts[0]) or torch.zeros(4, 1)
    )
    model.start(source, mask)
    for b, n in enumerate(mask.sum(1).tolist()):
        words = model.embed_tokens(source[b : b + 1, :n])
        states, _ = model.encoder.rnn(words.flip(1) if config.reverse_source else words)
        assert_equal(
            annotations[0][b, :n], states[0].flip(0) if config.reverse_source else states[0]
        )


def test_reversed_order_is_its_own_inverse():
    """Padding stays in place."""
    order = reversed_order(torch.tensor([4, 0, 1, 3]), 4)
    assert order.tolist() == [[3, 2, 1, 0], [0, 1, 2, 3], [0, 1, 2, 3], [2, 1, 0, 3]]
    assert order.gather(1, order).equal(torch.arange(4).expand(4, 4))


def test_parameters_in_closed_form():
    config = Seq2SeqConfig(vocab_size=100, d_embed=6, d_model=8)
    gru = 3 * 8 * (6 + 8 + 2)
    attention, decoder = (
        8 * 8 + 16 * 8 + 8,
        3 * 8 * (6 + 16 + 8 + 2) + (8 * 8 + 8) + (8 + 6 + 16 + 1) * 6,
    )
    assert (
        sum(p.numel() for p in Seq2Seq(config).parameters()) == 600 + 2 * gru + attention + decoder
    )


def test_embedding_and_head_are_one_matrix_or_two():
    tied, untied = Seq2Seq(ONE), Seq2Seq(Seq2SeqConfig(tie_embeddings=False, **SHAPE))
    assert tied.head_weight is tied.embed_tokens.weight
    assert untied.head_weight is not untied.embed_tokens.weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1
    assert untied(*pairs()).shape == (4, 6, 31)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_fresh_weights_are_orthogonal_gate_by_gate(cell):
    """The first loss is ln(vocab_size)."""
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(vocab_size=1000, cell=cell, d_embed=32, d_model=64, dropout=0.0))
    recurrent = [model.encoder.rnn.weight_hh_l0, model.encoder.rnn.weight_hh_l0_reverse]
    for matrix in (*recurrent, model.decoder.cells[0].recurrent.weight):
        for gate in matrix.split(64):
            torch.testing.assert_close(gate @ gate.T, torch.eye(64), rtol=0, atol=1e-5)
    forget = model.decoder.embed_gates.bias + model.decoder.cells[0].recurrent.bias
    assert forget[64:128].unique().tolist() == [1.0 if cell == "lstm" else 0.0]
    gates = model.embed_tokens.weight @ model.decoder.embed_gates.weight.T
    assert gates.std().item() == pytest.approx(1, rel=0.1)
    source, target = (torch.randint(1000, (16, 9)) for _ in range(2))
    loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.5)


def test_dropout_places():
    """On embeddings, between layers and on the readout, in training only."""
    model, (source, target, mask) = (
        random_model(Seq2SeqConfig(dropout=0.5, **SHAPE)),
        pairs(source_seq=7, seq=60),
    )
    seen = {}
    for name in ("encoder", "decoder", "decoder.layer_gates.0"):
        keep = functools.partial(
            lambda name, _, args: seen.setdefault(name, []).append(args[0]), name
        )
        model.get_submodule(name).register_forward_pre_hook(keep)

    def dropped():
        """The share of zeros at each place."""
        seen.clear()
        seen["readout"] = [model.hidden(source, target, mask)]
        return [
            (torch.cat([x.flatten() for x in tensors]) == 0).double().mean().item()
            for tensors in seen.values()
        ]

    assert dropped() == [0.0] * 4
    model.train()
    assert dropped() == pytest.approx([0.5] * 4, abs=0.15)
    assert model.encoder.rnn.dropout == 0.5  # torch's own, between the encoder's layers


@each_config
def test_the_numbers_may_be_bfloat16(config):
    model, (source, target, mask) = random_model(config).float(), pairs()
    exact = model(source, target, mask)
    model.compute_dtype = torch.bfloat16
    logits = model(source, target, mask)
    assert model.hidden(source, target, mask).dtype == logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05)


@each_config
def test_flops_are_those_that_torch_counts(config):
    model, (source, target, mask) = random_model(config), pairs()
    batch = Batch(target, target, source, mask)
    with FlopCounterMode(display=False) as forward:
        logits = model(source, target, mask)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert 3 * forward.get_total_flops() == model.flops(batch)
    # Of a first step nothing flows back into the encoder's zeros, which at these sizes is a tenth.
    assert 0.85 < backward.get_total_flops() / forward.get_total_flops() / 2 <= 1


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="vocab_size"):
        Seq2Seq(Seq2SeqConfig())
    model, (source, target, mask) = random_model(ONE), pairs()
    with pytest.raises(UserError, match="pad each row on its right"):
        model(source, target, mask.flip(1))
    with pytest.raises(UserError, match="no position"):
        model(source[:, :0], target)
