"""The recurrent encoder and decoder (Cho et al. 2014; Bahdanau et al. 2014, appendix A), of GRU or
LSTM cells.

One decoder serves both papers: what it sees of the source is up to its attention, `FixedContext` or
`AdditiveAttention`. What need not wait for the step before is computed for all steps at once: the
embeddings' part of the gates, and the readout. Only the recurrence is a loop.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seq2chat.nn.attention import AdditiveAttention, FixedContext, Source
from seq2chat.nn.block import Linear

# What a layer carries from step to step: a GRU its state (h,), an LSTM its state and its cell (h,
# c).
Carry = tuple[Float[Tensor, "batch d_model"], ...]


class GRUCell(nn.Module):
    """A gated recurrent unit, without the input's matrices: r, z = σ(x + U h), n = tanh(x + r ∘ U
    h) and h' = (1 - z) ∘ n + z ∘ h.

    It is torch's, whose kernels the encoder uses. The papers reset before they multiply, U (r ∘ h).
    z is that of Cho et al. 2014 (section 2.3); Bahdanau et al. 2014 (appendix A.1.1) call it 1 - z.
    """

    n_gates = 3

    def __init__(self, d_model: int):
        super().__init__()
        self.recurrent = Linear(d_model, self.n_gates * d_model)

    def forward(self, gates: Float[Tensor, "batch gates"], carry: Carry) -> Carry:
        """Return the next (h,); `gates` is what the input adds to r, z and n, side by side."""
        (h,) = carry
        r_x, z_x, n_x = gates.chunk(3, dim=-1)
        r_h, z_h, n_h = self.recurrent(h).chunk(3, dim=-1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return (torch.lerp(n, h, z),)


class LSTMCell(nn.Module):
    """A long short-term memory, without the input's matrices: i, f, o = σ(x + U h), g = tanh(x + U
    h), c' = f ∘ c + i ∘ g and h' = o ∘ tanh(c') (Hochreiter and Schmidhuber 1997; the forget gate:
    Gers et al. 2000)."""

    n_gates = 4

    def __init__(self, d_model: int):
        super().__init__()
        self.recurrent = Linear(d_model, self.n_gates * d_model)

    def forward(self, gates: Float[Tensor, "batch gates"], carry: Carry) -> Carry:
        """Return the next (h, c); `gates` is what the input adds to i, f, g and o, side by side."""
        h, c = carry
        i, f, g, o = (gates + self.recurrent(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Encoder(nn.Module):
    """Reads the source: an annotation of each word, and what the layers end with."""

    def __init__(
        self,
        cell: Literal["gru", "lstm"],
        d_embed: int,
        d_model: int,
        n_layer: int,
        bidirectional: bool,
        dropout: float,
    ):
        super().__init__()
        self.n_direction = 2 if bidirectional else 1
        self.d_memory = self.n_direction * d_model
        kind, between = nn.GRU if cell == "gru" else nn.LSTM, dropout if n_layer > 1 else 0.0
        self.rnn = kind(
            d_embed,
            d_model,
            n_layer,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=between,
        )

    def forward(
        self, embedded: Float[Tensor, "batch source_seq d_embed"], lengths: Int[Tensor, " batch"]
    ) -> tuple[
        Float[Tensor, "batch source_seq d_memory"], Float[Tensor, "batch d_memory"], list[Carry]
    ]:
        """Return the annotations h_j, the summary of each row, and the carry that each layer ends
        with.

        An annotation is a state of the top layer, in both directions [h→_j; h←_j] (Bahdanau et al.
        2014, section 3.2); that of padding is zero. The summary is where the top layer ends, h→_Tx
        or [h→_Tx; h←_1]. The carries are those of the backward direction at the first word, or of
        the only direction at the last.
        """
        # Packed: padding costs nothing and is never read. A row without any word is read as one
        # word of padding.
        packed = pack_padded_sequence(
            embedded, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        output, last = self.rnn(packed)
        annotations, _ = pad_packed_sequence(
            output, batch_first=True, total_length=embedded.shape[1]
        )
        parts = last if isinstance(last, tuple) else (last,)
        directions = [part.unflatten(0, (-1, self.n_direction)) for part in parts]
        summary = torch.cat(directions[0][-1].unbind(0), dim=-1)
        return (
            annotations,
            summary,
            list(zip(*(part[:, -1].unbind(0) for part in directions), strict=True)),
        )


@dataclass
class DecoderState:
    """What a decoder knows between two steps: the carry of each layer, and the source as its
    attention wants it.

    Row i decodes the source that was row `origin[i]` when decoding started.
    """

    layers: list[Carry]
    memory: Source | Tensor
    origin: Int[Tensor, " batch"]

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Make row i what row `rows[i]` was. Rows may be dropped or repeated, so the batch may
        shrink or grow."""
        self.layers = [tuple(part[rows] for part in layer) for layer in self.layers]
        origin = self.origin[rows]
        # The hypotheses of a beam change places, but not their source.
        if not torch.equal(origin, self.origin):
            memory = self.memory
            self.memory = (
                memory[rows]
                if isinstance(memory, Tensor)
                else Source(*(part[rows] for part in memory))
            )
        self.origin = origin


class Decoder(nn.Module):
    """s_i = cell([E y_{i-1}; c_i], s_{i-1}), and the readout t_i = tanh(W_o [s_i; E y_{i-1}; c_i]).

    Bahdanau et al. 2014, appendix A.2.2, whose readout is a maxout of the same three. The context
    c_i is what the attention makes of the source for the query s_{i-1}, the state of the top layer;
    it enters the lowest. t_i is as wide as an embedding, so that one matrix can embed the words and
    score them.
    """

    def __init__(
        self,
        cell: Literal["gru", "lstm"],
        attention: AdditiveAttention | FixedContext,
        d_embed: int,
        d_memory: int,
        d_model: int,
        n_layer: int,
        dropout: float,
    ):
        super().__init__()
        self.attention = attention
        kind = GRUCell if cell == "gru" else LSTMCell
        d_gates = kind.n_gates * d_model
        self.embed_gates = Linear(d_embed, d_gates)
        self.context_gates = Linear(d_memory, d_gates, bias=False)
        self.layer_gates = nn.ModuleList(Linear(d_model, d_gates) for _ in range(n_layer - 1))
        self.cells = nn.ModuleList(kind(d_model) for _ in range(n_layer))
        self.init_state = nn.ModuleList(Linear(d_model, d_model) for _ in range(n_layer))
        self.init_cell = nn.ModuleList(
            Linear(d_model, d_model) for _ in range(n_layer if cell == "lstm" else 0)
        )
        self.readout = Linear(d_model + d_embed + d_memory, d_embed)
        self.dropout = nn.Dropout(dropout)

    def start(
        self,
        annotations: Float[Tensor, "batch source_seq d_memory"],
        mask: Bool[Tensor, "batch source_seq"],
        summary: Float[Tensor, "batch d_memory"],
        carries: list[Carry],
    ) -> DecoderState:
        """Return the state before the first step, from what the encoder returned and the mask of
        its words.

        Each layer starts with s_0 = tanh(W_s h) (Bahdanau et al. 2014, appendix A.2.2), an LSTM's
        cell with W_c c: a state lies within ±1, a cell anywhere.
        """
        layers: list[Carry] = []
        for i, carry in enumerate(carries):
            s_0 = torch.tanh(self.init_state[i](carry[0]))
            layers.append((s_0,) if len(carry) == 1 else (s_0, self.init_cell[i](carry[1])))
        origin = torch.arange(len(summary), device=summary.device)
        return DecoderState(layers, self.attention.prepare(annotations, mask, summary), origin)

    def forward(
        self, embedded: Float[Tensor, "batch seq d_embed"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch seq d_embed"], DecoderState]:
        """Return the readout of every step, each fed one of `embedded`, and the state after the
        last one.

        The given state stays as it was.
        """
        layers, states, contexts = state.layers, [], []
        context = gates_context = embedded.new_empty(0)
        for gates_embed in self.embed_gates(embedded).unbind(1):
            before = context
            context, _ = self.attention(layers[-1][0], state.memory)
            if context is not before:  # a fixed context is the same tensor at every step
                gates_context = self.context_gates(context)
            layers = self._step(gates_embed + gates_context, layers)
            states.append(layers[-1][0])
            contexts.append(context)
        features = torch.cat(
            [torch.stack(states, dim=1), embedded, torch.stack(contexts, dim=1)], dim=-1
        )
        readout = torch.tanh(self.readout(features))
        return self.dropout(readout), DecoderState(layers, state.memory, state.origin)

    def _step(self, gates: Float[Tensor, "batch gates"], layers: list[Carry]) -> list[Carry]:
        """Return the next carry of every layer, the lowest being fed `gates`."""
        after = [self.cells[0](gates, layers[0])]
        for cell, gates_of, carry in zip(self.cells[1:], self.layer_gates, layers[1:], strict=True):
            after.append(cell(gates_of(self.dropout(after[-1][0])), carry))
        return after
