"""The gates and states inside recurrent layers, which their modules compute without returning them.

They are recomputed from the recorded inputs by the formulas of `nn/rnn.py`. torch's own layers, in
the encoder, use the same ones.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.nn.rnn import Encoder

GATES = {"gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o")}
"""The names of the gates of each cell, in the order of their tensors."""


def gates(
    inputs: Float[Tensor, "batch gates"], recurrent: Float[Tensor, "batch gates"], is_lstm: bool
) -> Float[Tensor, "batch gate d_model"]:
    """Return the gates for the terms of the input and of the state: r, z, n, or i, f, g, o."""
    if is_lstm:
        i, f, g, o = (inputs + recurrent).chunk(4, dim=-1)
        return torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], dim=1)
    r_x, z_x, n_x = inputs.chunk(3, dim=-1)
    r_h, z_h, n_h = recurrent.chunk(3, dim=-1)
    r = (r_x + r_h).sigmoid()
    return torch.stack([r, (z_x + z_h).sigmoid(), (n_x + r * n_h).tanh()], dim=1)


class EncoderLayers:
    """Computes the states and gates of all layers and directions of an encoder's newest pass."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._output: object = None
        self._tensors: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """The names of the tensors, for example `forward.0` and `forward.0.gates`."""
        n_layer = self._encoder.rnn.num_layers
        directions = ("forward", "backward")[: self._encoder.n_direction]
        names = [f"{direction}.{i}" for direction in directions for i in range(n_layer)]
        return [part for name in names for part in (name, f"{name}.gates")]

    def read(
        self,
        name: str,
        embedded: Float[Tensor, "batch seq d_embed"],
        lengths: Int[Tensor, " batch"],
        output: object,
    ) -> Float[Tensor, "batch seq *d"]:
        """Return one of the tensors for the pass with this `output`, zero in the padding."""
        if output is not self._output:
            self._output = output
            self._tensors = self._compute(embedded, lengths)
        return self._tensors[name]

    def _compute(self, embedded: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        below = embedded
        seq = embedded.shape[1]
        index = torch.arange(seq, device=embedded.device)
        is_text = index < lengths.clamp(min=1).to(embedded.device)[:, None]
        for layer in range(self._encoder.rnn.num_layers):
            outputs = []
            for direction in ("forward", "backward")[: self._encoder.n_direction]:
                states, layer_gates = self._layer(below, is_text, layer, direction == "backward")
                tensors[f"{direction}.{layer}"] = states
                tensors[f"{direction}.{layer}.gates"] = layer_gates
                outputs.append(states)
            below = torch.cat(outputs, dim=-1)
        return tensors

    def _layer(
        self, below: Tensor, is_text: Tensor, layer: int, is_backward: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the states (batch, seq, d_model) and gates (batch, seq, gate, d_model)."""
        rnn = self._encoder.rnn
        suffix = f"l{layer}_reverse" if is_backward else f"l{layer}"
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w_x, w_h, b_x, b_h = (cast(Tensor, getattr(rnn, f"{part}_{suffix}")) for part in parts)
        is_lstm = rnn.mode == "LSTM"
        inputs = below.to(w_x.dtype) @ w_x.T + b_x
        h = inputs.new_zeros(len(below), rnn.hidden_size)
        c = torch.zeros_like(h)
        states = []
        all_gates = []
        order = range(below.shape[1])
        for t in reversed(order) if is_backward else order:
            gate = gates(inputs[:, t], h @ w_h.T + b_h, is_lstm)
            if is_lstm:
                i, f, g, o = gate.unbind(1)
                new_c = f * c + i * g
                new_h = o * new_c.tanh()
            else:
                _, z, n = gate.unbind(1)
                new_c = c
                new_h = torch.lerp(n, h, z)
            # A row's state stays in its padding.
            here = is_text[:, t, None]
            h = new_h.where(here, h)
            c = new_c.where(here, c)
            states.append(h * here)
            all_gates.append(gate * here[:, None])
        if is_backward:
            states.reverse()
            all_gates.reverse()
        return torch.stack(states, dim=1), torch.stack(all_gates, dim=1)
