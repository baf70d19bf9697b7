"""The recurrent encoder and decoder, with GRU or LSTM cells.

One decoder serves both papers (Cho et al. 2014; Bahdanau et al. 2014, appendix A): its view of the
source is its attention, `FixedContext` or `AdditiveAttention`. Everything that does not depend on
the previous step is computed for all steps at once: the embeddings' part of the gates, and the
readout. Only the recurrence is a loop.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seq2chat.nn.attention import AdditiveAttention, FixedContext, Source
from seq2chat.nn.block import Linear

# The state of a layer between steps: (h,) for a GRU, (h, c) with the cell for an LSTM.
Carry = tuple[Float[Tensor, "batch d_model"], ...]


class GRUCell(nn.Module):
    """A gated recurrent unit, without the input's matrices.

    r, z = σ(x + U h), n = tanh(x + r ∘ U h) and h' = (1 - z) ∘ n + z ∘ h. This is torch's formula,
    because the encoder uses torch's kernels. The papers reset before they multiply, U (r ∘ h). z is
    as in Cho et al. 2014 (section 2.3), while Bahdanau et al. 2014 (appendix A.1.1) write 1 - z.
    """

    n_gates = 3

    def __init__(self, d_model: int):
        super().__init__()
        self.recurrent = Linear(d_model, self.n_gates * d_model)

    def forward(self, gates: Float[Tensor, "batch gates"], carry: Carry) -> Carry:
        """Return the next (h,). `gates` concatenates the input's terms for r, z and n."""
        (h,) = carry
        r_x, z_x, n_x = gates.chunk(3, dim=-1)
        r_h, z_h, n_h = self.recurrent(h).chunk(3, dim=-1)
        r = torch.sigmoid(r_x + r_h)
        z = torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return (torch.lerp(n, h, z),)


class LSTMCell(nn.Module):
    """A long short-term memory, without the input's matrices.

    i, f, o = σ(x + U h), g = tanh(x + U h), c' = f ∘ c + i ∘ g and h' = o ∘ tanh(c') (Hochreiter
    and Schmidhuber 1997; the forget gate is from Gers et al. 2000).
    """

    n_gates = 4

    def __init__(self, d_model: int):
        super().__init__()
        self.recurrent = Linear(d_model, self.n_gates * d_model)

    def forward(self, gates: Float[Tensor, "batch gates"], carry: Carry) -> Carry:
        """Return the next (h, c). `gates` concatenates the input's terms for i, f, g and o."""
        h, c = carry
        i, f, g, o = (gates + self.recurrent(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Encoder(nn.Module):
    """Reads the source, and returns an annotation per word and the last states."""

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
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.rnn = kind(
            d_embed,
            d_model,
            n_layer,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if n_layer > 1 else 0.0,  # between layers
        )

    def forward(
        self, embedded: Float[Tensor, "batch source_seq d_embed"], lengths: Int[Tensor, " batch"]
    ) -> tuple[
        Float[Tensor, "batch source_seq d_memory"], Float[Tensor, "batch d_memory"], list[Carry]
    ]:
        """Return the annotations h_j, the summary of each row, and the last carry of each layer.

        An annotation is a state of the top layer, in both directions [h→_j; h←_j] (Bahdanau et al.
        2014, section 3.2). Annotations of padding are zero. The summary is the last state of the
        top layer, h→_Tx or [h→_Tx; h←_1]. The carries belong to the backward direction at the first
        word, or to the only direction at the last word.
        """
        # Packing means that padding costs nothing and is never read. A row without any word is read
        # as one word of padding.
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
        carries = list(zip(*(part[:, -1].unbind(0) for part in directions), strict=True))
        return annotations, summary, carries


@dataclass
class DecoderState:
    """The state between two steps: the carry of each layer, and the memory of the attention.

    Row i decodes the source that was row `origin[i]` when decoding started.
    """

    layers: list[Carry]
    memory: Source | Tensor
    origin: Int[Tensor, " batch"]

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace row i by the previous row `rows[i]`. Rows may be dropped or repeated."""
        self.layers = [tuple(part[rows] for part in layer) for layer in self.layers]
        origin = self.origin[rows]
        # Beam search mostly reorders rows of the same source, which need no copy of the memory.
        if not torch.equal(origin, self.origin):
            if isinstance(self.memory, Tensor):
                self.memory = self.memory[rows]
            else:
                self.memory = Source(*(part[rows] for part in self.memory))
        self.origin = origin


class Decoder(nn.Module):
    """s_i = cell([E y_{i-1}; c_i], s_{i-1}), and the readout t_i = tanh(W_o [s_i; E y_{i-1}; c_i]).

    Bahdanau et al. 2014, appendix A.2.2, where the readout is a maxout of the same three. The
    context c_i is the result of the attention for the query s_{i-1}, the state of the top layer. It
    enters the lowest layer. t_i is as wide as an embedding, so that one matrix can embed the words
    and score them.
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
    ):  # the fields of the model's configuration, passed as keywords
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
        """Return the state before the first step. `mask` is True where there is a word.

        Each layer starts with s_0 = tanh(W_s h) (Bahdanau et al. 2014, appendix A.2.2), and an
        LSTM's cell with W_c c, because states lie within ±1 and cells do not.
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
        """Return the readout of each step, whose input is one of `embedded`, and the last state.

        `state` is not changed.
        """
        layers = state.layers
        states = []
        contexts = []
        context = gates_context = embedded.new_empty(0)
        for gates_embed in self.embed_gates(embedded).unbind(1):
            previous = context
            context, _ = self.attention(layers[-1][0], state.memory)
            if context is not previous:  # a fixed context is the same tensor at every step
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
        """Return the next carry of each layer. The lowest layer's input is `gates`."""
        carries = [self.cells[0](gates, layers[0])]
        for cell, to_gates, carry in zip(self.cells[1:], self.layer_gates, layers[1:], strict=True):
            carries.append(cell(to_gates(self.dropout(carries[-1][0])), carry))
        return carries
