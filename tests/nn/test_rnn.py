import pytest
import torch
from torch import nn

from seq2chat.nn.attention import AdditiveAttention, FixedContext
from seq2chat.nn.rnn import Decoder, Encoder, GRUCell, LSTMCell

LENGTHS = torch.tensor([5, 2, 4])
each_cell = pytest.mark.parametrize("cell", ["gru", "lstm"])


def randomize(module):
    torch.manual_seed(0)
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def random(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def gru(w, u, b_x, b_h, x, h):
    """The unit's equations for one row, gate by gate."""
    (w_r, w_z, w_n), (u_r, u_z, u_n) = w.split(len(h)), u.split(len(h))
    (x_r, x_z, x_n), (h_r, h_z, h_n) = b_x.split(len(h)), b_h.split(len(h))
    r = 1 / (1 + torch.exp(-(w_r @ x + x_r + u_r @ h + h_r)))
    z = 1 / (1 + torch.exp(-(w_z @ x + x_z + u_z @ h + h_z)))
    n = torch.tanh(w_n @ x + x_n + r * (u_n @ h + h_n))
    return (1 - z) * n + z * h


def lstm(w, u, b_x, b_h, x, h, c):
    i, f, g, o = (w @ x + b_x + u @ h + b_h).split(len(h))
    i, f, o = (1 / (1 + torch.exp(-gate)) for gate in (i, f, o))
    c = f * c + i * torch.tanh(g)
    return o * torch.tanh(c), c


def read(cell, weights, words):
    """Return the states of one direction over one sentence and the last carry, step by step."""
    h = c = torch.zeros(weights[1].shape[1], dtype=torch.float64)
    states = []
    for x in words:
        if cell == "gru":
            h = gru(*weights, x, h)
        else:
            h, c = lstm(*weights, x, h, c)
        states.append(h)
    return torch.stack(states), (h,) if cell == "gru" else (h, c)


@pytest.mark.parametrize(("ours", "peer"), [(GRUCell, nn.GRUCell), (LSTMCell, nn.LSTMCell)])
def test_a_cell_is_torchs(ours, peer):
    ours, peer = randomize(ours(4)), randomize(peer(3, 4))
    ours.load_state_dict({"recurrent.weight": peer.weight_hh, "recurrent.bias": peer.bias_hh})
    x, carry = (
        random(5, 3),
        tuple(random(5, 4, seed=i) for i in range(2 if isinstance(ours, LSTMCell) else 1)),
    )
    expected = peer(x, carry if len(carry) == 2 else carry[0])
    assert_equal(
        ours(x @ peer.weight_ih.T + peer.bias_ih, carry),
        expected if len(carry) == 2 else (expected,),
    )


@each_cell
@pytest.mark.parametrize("n_layer", [1, 2])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_encoder_equals_the_equations(cell, bidirectional, n_layer):
    encoder = randomize(
        Encoder(
            cell, d_embed=3, d_model=4, n_layer=n_layer, bidirectional=bidirectional, dropout=0.0
        )
    )
    embedded = random(3, 6, 3)
    annotations, summary, carries = encoder(embedded, LENGTHS)
    assert len(carries) == n_layer
    for b, n in enumerate(LENGTHS.tolist()):
        words = embedded[b, :n]
        for layer, carry in enumerate(carries):
            forward, *backward = encoder.rnn.all_weights[layer * encoder.n_direction :][
                : encoder.n_direction
            ]
            states, last = read(cell, forward, words)
            ends = [last[0]]
            for weights in backward:
                turned, last = read(cell, weights, words.flip(0))
                states = torch.cat([states, turned.flip(0)], dim=-1)
                ends.append(last[0])
            words = states
            assert_equal(tuple(part[b] for part in carry), last)
        assert_equal(annotations[b, :n], words)
        assert (annotations[b, n:] == 0).all()
        assert_equal(summary[b], torch.cat(ends))


@each_cell
def test_the_encoder_never_reads_padding(cell):
    encoder = randomize(
        Encoder(cell, d_embed=3, d_model=4, n_layer=2, bidirectional=True, dropout=0.0)
    )
    embedded = random(3, 6, 3).requires_grad_()
    annotations, summary, carries = encoder(embedded, LENGTHS)
    (
        annotations.sum() + summary.sum() + sum(part.sum() for carry in carries for part in carry)
    ).backward()
    padding = torch.arange(6) >= LENGTHS[:, None]
    assert (embedded.grad.abs().sum(-1) == 0).equal(padding)


def make_decoder(cell, attention, n_layer=2):
    return randomize(
        Decoder(cell, attention, d_embed=3, d_memory=5, d_model=4, n_layer=n_layer, dropout=0.0)
    )


def source(decoder):
    mask = torch.arange(6) < LENGTHS[:, None]
    n_parts = 1 if isinstance(decoder.cells[0], GRUCell) else 2
    carries = [
        tuple(random(3, 4, seed=10 * i + j) for j in range(n_parts))
        for i in range(len(decoder.cells))
    ]
    return decoder.start(random(3, 6, 5, seed=5), mask, random(3, 5, seed=6), carries)


@each_cell
def test_fixed_context_decoder_equals_torchs_rnn(cell):
    decoder = make_decoder(cell, FixedContext())
    peer = (nn.GRU if cell == "gru" else nn.LSTM)(8, 4, num_layers=2, batch_first=True).double()
    inputs = [decoder.embed_gates, *decoder.layer_gates]
    for i, (gates, own) in enumerate(zip(inputs, decoder.cells, strict=True)):
        whole = (
            torch.cat([gates.weight, decoder.context_gates.weight], dim=1)
            if i == 0
            else gates.weight
        )
        tensors = (whole, own.recurrent.weight, gates.bias, own.recurrent.bias)
        for parameter, tensor in zip(peer.all_weights[i], tensors, strict=True):
            parameter.data = tensor.detach().clone()
    state, embedded = source(decoder), random(3, 7, 3)
    start = [torch.stack(parts).detach() for parts in zip(*state.layers, strict=True)]
    context = state.memory[:, None].expand(-1, 7, -1)
    words = torch.cat([embedded, context], dim=-1)
    states, _ = peer(words, start[0] if cell == "gru" else tuple(start))
    expected = torch.tanh(
        torch.cat([states, words], dim=-1) @ decoder.readout.weight.T + decoder.readout.bias
    )
    readout, _ = decoder(embedded, state)
    assert_equal(readout, expected)

    (readout * random(3, 7, 3, seed=7)).sum().backward()
    (expected * random(3, 7, 3, seed=7)).sum().backward()
    d_input = torch.cat([decoder.embed_gates.weight.grad, decoder.context_gates.weight.grad], dim=1)
    ours = [
        d_input,
        *(cell.recurrent.weight.grad for cell in decoder.cells),
        decoder.layer_gates[0].weight.grad,
    ]
    assert_equal(
        ours,
        [
            peer.weight_ih_l0.grad,
            peer.weight_hh_l0.grad,
            peer.weight_hh_l1.grad,
            peer.weight_ih_l1.grad,
        ],
    )


@each_cell
@pytest.mark.parametrize("n_layer", [1, 2])
def test_attention_decoder_equals_the_paper(cell, n_layer):
    decoder = make_decoder(cell, AdditiveAttention(4, 5, 6), n_layer)
    state, embedded = source(decoder), random(3, 7, 3)
    readout, after = decoder(embedded, state)
    w, u, v = (
        m.weight
        for m in (decoder.attention.q_proj, decoder.attention.k_proj, decoder.attention.score)
    )
    for b, n in enumerate(LENGTHS.tolist()):
        layers, h = (
            [tuple(part[b] for part in layer) for layer in state.layers],
            state.memory.annotations[b, :n],
        )
        for t in range(7):
            energies = torch.stack([v[0] @ torch.tanh(w @ layers[-1][0] + u @ h_j) for h_j in h])
            context = torch.softmax(energies, dim=0) @ h
            x = torch.cat([embedded[b, t], context])
            below = x
            for i, own in enumerate(decoder.cells):
                gates = decoder.embed_gates if i == 0 else decoder.layer_gates[i - 1]
                whole = (
                    torch.cat([gates.weight, decoder.context_gates.weight], dim=1)
                    if i == 0
                    else gates.weight
                )
                weights = whole, own.recurrent.weight, gates.bias, own.recurrent.bias
                result = (gru if cell == "gru" else lstm)(*weights, below, *layers[i])
                layers[i] = (result,) if cell == "gru" else result
                below = layers[i][0]
            expected = torch.tanh(
                decoder.readout.weight @ torch.cat([below, x]) + decoder.readout.bias
            )
            assert_equal(readout[b, t], expected)
        assert_equal([tuple(part[b] for part in layer) for layer in after.layers], layers)


@each_cell
def test_the_first_state_is_the_papers(cell):
    decoder = make_decoder(cell, FixedContext())
    carries = [
        tuple(random(3, 4, seed=10 * i + j) for j in range(1 if cell == "gru" else 2))
        for i in range(2)
    ]
    for i, layer in enumerate(source(decoder).layers):
        start = decoder.init_state[i]
        assert_equal(layer[0], torch.tanh(carries[i][0] @ start.weight.T + start.bias))
        if cell == "lstm":
            assert_equal(
                layer[1], carries[i][1] @ decoder.init_cell[i].weight.T + decoder.init_cell[i].bias
            )


def test_attention_to_the_last_word_is_fixed_context():
    """Bahdanau et al. 2014, appendix A.2.2: fixing c_i to h→_Tx gives the RNN encoder–decoder."""
    attending, fixed = (
        make_decoder("gru", AdditiveAttention(4, 5, 6)),
        make_decoder("gru", FixedContext()),
    )
    fixed.load_state_dict(
        {k: v for k, v in attending.state_dict().items() if not k.startswith("attention")}
    )
    annotations, carries = random(3, 6, 5, seed=5), [(random(3, 4, seed=i),) for i in range(2)]
    last = torch.arange(6) == LENGTHS[:, None] - 1
    results = [
        d(random(3, 7, 3), d.start(annotations, last, annotations[last], carries))
        for d in (attending, fixed)
    ]
    assert_equal(results[0][0], results[1][0])
    assert_equal(results[0][1].layers, results[1][1].layers)


@each_cell
@pytest.mark.parametrize(
    "kind", [FixedContext, lambda: AdditiveAttention(4, 5, 6)], ids=["fixed", "additive"]
)
def test_reordered_rows_continue(cell, kind):
    decoder = make_decoder(cell, kind())
    # Beams of two and three; one of each is left.
    orders = [[2, 0, 1], [0, 0, 1, 1, 1], [1, 0, 4, 4, 2], [4, 1]]
    words, state = [random(3, 1, 3)], source(decoder)
    for i, order in enumerate(orders):
        _, state = decoder(words[-1], state)
        memory = state.memory
        state.reorder(torch.tensor(order))
        assert (state.memory is memory) == (i == 2)  # no copies while each row keeps its source
        words.append(random(len(order), 1, 3, seed=20 + i))
    readout, _ = decoder(words[-1], state)

    rows, history = torch.arange(2), [words[-1]]
    for order, fed in zip(reversed(orders), reversed(words[:-1]), strict=True):
        rows = torch.tensor(order)[rows]
        history.insert(0, fed[rows])
    assert rows.tolist() == [0, 2]
    whole, _ = decoder(
        torch.cat([fed[:1].expand(3, -1, -1) for fed in history], dim=1), source(decoder)
    )
    other, _ = decoder(
        torch.cat([fed[1:].expand(3, -1, -1) for fed in history], dim=1), source(decoder)
    )
    assert_equal(readout[:, 0], torch.stack([whole[rows[0], -1], other[rows[1], -1]]))


def test_the_given_state_stays_as_it_was():
    decoder = make_decoder("gru", AdditiveAttention(4, 5, 6))
    state = source(decoder)
    before = [[part.clone() for part in layer] for layer in state.layers]
    first, _ = decoder(random(3, 2, 3), state)
    assert_equal([list(layer) for layer in state.layers], before)
    assert_equal(decoder(random(3, 2, 3), state)[0], first)
