"""Seq2Seq: the RNN encoder–decoder, with a fixed context (Cho et al. 2014; Sutskever et al. 2014)
or with attention (Bahdanau et al. 2014). Reads top-down: Seq2Seq → Encoder and Decoder of
`nn/rnn.py`, then weights.

Source and target share one vocabulary and one embedding.
"""

import sys
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seq2chat.config import Seq2SeqConfig, check
from seq2chat.nn.attention import AdditiveAttention, FixedContext
from seq2chat.nn.block import Linear
from seq2chat.nn.rnn import Decoder, DecoderState, Encoder
from seq2chat.text.batch import Batch


class Seq2Seq(nn.Module):
    """A translation model: the logits of each target position depend on the source and the target
    up to there."""

    reads_source: ClassVar[Literal[True]] = True

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        check(
            config.vocab_size > 0,
            "model.vocab_size is 0; write the size of the tokenizer's vocabulary.",
        )
        self.config = config
        # Number format of the matrix products and the logits; None is the weights' own.
        self.compute_dtype: torch.dtype | None = None
        d_embed, d_model, n_layer = config.d_embed, config.d_model, config.n_layer
        self.embed_tokens = nn.Embedding(config.vocab_size, d_embed)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(
            config.cell, d_embed, d_model, n_layer, config.bidirectional, config.dropout
        )
        d_memory = self.encoder.d_memory
        attention = (
            AdditiveAttention(d_model, d_memory, d_model)
            if config.attention == "additive"
            else FixedContext()
        )
        self.decoder = Decoder(
            config.cell, attention, d_embed, d_memory, d_model, n_layer, config.dropout
        )
        self.lm_head = (
            None if config.tie_embeddings else Linear(d_embed, config.vocab_size, bias=False)
        )
        init_weights(self)

    @property
    def context(self) -> int:
        """The most positions a row may have: a recurrence knows no bound; `config.context` bounds
        its training."""
        return sys.maxsize

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_embed"]:
        """The matrix that turns `hidden` into logits: the head's own, or the embedding when they
        are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        source: Int[Tensor, "batch source_seq"],
        target: Int[Tensor, "batch seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the target token that follows each position of `target`.

        `source` is padded on the right and `source_mask` True where it has a token; None means
        everywhere. `target` starts with the tokenizer's eos.
        """
        return self.logits(self.hidden(source, target, source_mask))

    def logits(
        self, hidden: Float[Tensor, "batch seq d_embed"]
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return what the output head makes of `hidden`."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def hidden(
        self,
        source: Int[Tensor, "batch source_seq"],
        target: Int[Tensor, "batch seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_embed"]:
        """Return what the head reads: the decoder's readout. Arguments as in `forward`."""
        return self._decode(target, self.start(source, source_mask))[0]

    def start(
        self,
        source: Int[Tensor, "batch source_seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> DecoderState:
        """Return the decoding state that the encoded source gives, before the first target token.

        Raises UserError for a source without a column, or one with padding before a token.
        """
        check(
            source.shape[1] > 0,
            "The source has no position; give each row at least one token or padding.",
        )
        mask = torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask
        gap = mask[:, 1:] & ~mask[:, :-1]
        check(
            not bool(gap.any()),
            "source_mask has padding before a token; pad each row on its right.",
        )
        lengths = mask.sum(1)
        order = reversed_order(lengths, source.shape[1]) if self.config.reverse_source else None
        with self._autocast():
            embedded = self._embed(source if order is None else source.gather(1, order))
            annotations, summary, carries = self.encoder(embedded, lengths)
            # Back in the order of the source: annotation j is that of token j.
            if order is not None:
                annotations = annotations.take_along_dim(order[:, :, None], dim=1)
            return self.decoder.start(annotations, mask, summary, carries)

    def step(
        self, tokens: Int[Tensor, "batch n_new"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch n_new vocab"], DecoderState]:
        """Return the logits that follow the next `n_new` target tokens of each row, and the state
        after them.

        Feeding a target in any portions gives the logits of `forward` on the whole. The given state
        stays as it was.
        """
        hidden, state = self._decode(tokens, state)
        return self.logits(hidden), state

    def flops(self, batch: Batch) -> int:
        """Return the floating point operations of training on `batch`, forward and backward: 6 for
        each weight of a matrix product and each token it is used on, and as many for each product
        of the attention.

        Of the source the encoder reads the tokens only; the attention sees its padding, too, as the
        decoder does that of the target. Gates and softmax are not counted.
        """
        assert batch.source is not None
        n_source = (
            batch.source.numel() if batch.source_mask is None else int(batch.source_mask.sum())
        )
        (rows, source_seq), n_target, decoder = (
            batch.source.shape,
            batch.target.numel(),
            self.decoder,
        )
        products = (
            n_matrix(self.encoder) * n_source
            + n_matrix(decoder.init_state, decoder.init_cell) * rows
        )
        stepwise = n_matrix(
            decoder.embed_gates, decoder.layer_gates, decoder.cells, decoder.readout
        )
        products += (stepwise + self.head_weight.numel()) * n_target
        if isinstance(decoder.attention, FixedContext):
            return 6 * (products + n_matrix(decoder.context_gates) * rows)
        keys, query = (
            decoder.attention.k_proj,
            n_matrix(decoder.attention.q_proj, decoder.context_gates),
        )
        products += n_matrix(keys) * rows * source_seq + query * n_target
        return 6 * (products + (keys.out_features + keys.in_features) * n_target * source_seq)

    def _embed(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_embed"]:
        return self.dropout(self.embed_tokens(tokens))

    def _decode(
        self, tokens: Int[Tensor, "batch seq"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch seq d_embed"], DecoderState]:
        with self._autocast():
            return self.decoder(self._embed(tokens), state)

    def _autocast(self) -> torch.autocast:
        """The recurrence in bfloat16: its layers take no other weights than their own, and autocast
        rounds those once for all steps."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.compute_dtype == torch.bfloat16
        )


def n_matrix(*modules: nn.Module) -> int:
    """Return the number of weights in the matrices of `modules`."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)


def reversed_order(lengths: Int[Tensor, " batch"], seq: int) -> Int[Tensor, "batch {seq}"]:
    """Return the index that turns each row's first `lengths` positions round and leaves the others;
    its own inverse."""
    index = torch.arange(seq, device=lengths.device)
    turned = lengths[:, None] - 1 - index
    return torch.where(turned >= 0, turned, index)


@torch.no_grad()
def init_weights(model: Seq2Seq) -> None:
    """Draw fresh weights from torch's global generator.

    Recurrent matrices are orthogonal, gate by gate (Bahdanau et al. 2014, appendix B.1). The others
    keep the size of what they multiply, normal(1/√d_in), as do the embeddings, being rows of the
    head; the matrices that read these, vectors of length one, are normal(1), so that words reach
    the gates at size one, too. Biases are zero, but those of an LSTM's forget gate, which are one
    (Jozefowicz et al. 2015, section 2.2).
    """
    d_model = model.config.d_model
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.zero_()
            if model.config.cell == "lstm" and ("bias_ih" in name or "_gates" in name):
                parameter[d_model : 2 * d_model] = 1.0
        elif "weight_hh" in name or "recurrent" in name:
            for gate in parameter.split(d_model):
                nn.init.orthogonal_(gate)
        else:
            reads_embeddings = "weight_ih_l0" in name or "embed_gates" in name
            parameter.normal_(std=1.0 if reads_embeddings else parameter.shape[1] ** -0.5)
