"""Seq2Seq: the RNN encoder-decoder.

The decoder has a fixed context (Cho et al. 2014; Sutskever et al. 2014) or attention (Bahdanau et
al. 2014). The file reads top-down: Seq2Seq → Encoder and Decoder of `nn/rnn.py`, then weights.
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
    """A translation model: the logits depend on the source and the target up to each position."""

    reads_source: ClassVar[Literal[True]] = True

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        check(
            config.vocab_size > 0,
            "model.vocab_size is 0; write the size of the tokenizer's vocabulary.",
        )
        self.config = config
        # Number format of the matrix products and the logits. None means the format of the weights.
        self.compute_dtype: torch.dtype | None = None
        d_embed = config.d_embed
        d_model = config.d_model
        self.embed_tokens = nn.Embedding(config.vocab_size, d_embed)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(
            cell=config.cell,
            d_embed=d_embed,
            d_model=d_model,
            n_layer=config.n_layer,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
        )
        d_memory = self.encoder.d_memory
        attention = FixedContext()
        if config.attention == "additive":
            attention = AdditiveAttention(d_model, d_memory, d_model)
        self.decoder = Decoder(
            cell=config.cell,
            attention=attention,
            d_embed=d_embed,
            d_memory=d_memory,
            d_model=d_model,
            n_layer=config.n_layer,
            dropout=config.dropout,
        )
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = Linear(d_embed, config.vocab_size, bias=False)
        init_weights(self)

    @property
    def context(self) -> int:
        """Maximum number of positions per row: a recurrence has no limit.

        `config.context` limits the texts of its training.
        """
        return sys.maxsize

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_embed"]:
        """The matrix from `hidden` to logits: the output head's, or the embedding if tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        source: Int[Tensor, "batch source_seq"],
        target: Int[Tensor, "batch seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the token that follows each position of `target`.

        `source` is padded on the right. `source_mask` is True where it has a token, and None means
        everywhere. `target` starts with the end token.
        """
        return self.logits(self.hidden(source, target, source_mask))

    def logits(
        self, hidden: Float[Tensor, "batch seq d_embed"]
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits for the hidden states."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def hidden(
        self,
        source: Int[Tensor, "batch source_seq"],
        target: Int[Tensor, "batch seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_embed"]:
        """Return the decoder's readout, which the output head reads.

        Arguments as in `forward`.
        """
        readout, _ = self._decode(target, self.start(source, source_mask))
        return readout

    def start(
        self,
        source: Int[Tensor, "batch source_seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> DecoderState:
        """Return the decoding state before the first target token, from the encoded source.

        Raises UserError for a source of length 0, and for padding before a token.
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
            # Restore the order of the source, so that annotation j belongs to token j.
            if order is not None:
                annotations = annotations.take_along_dim(order[:, :, None], dim=1)
            return self.decoder.start(annotations, mask, summary, carries)

    def step(
        self, tokens: Int[Tensor, "batch n_new"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch n_new vocab"], DecoderState]:
        """Return the logits after each of the next `n_new` target tokens, and the new state.

        A target may come in portions of any size, for example token by token, and gets the same
        logits as in one call of `forward`. `state` itself is not changed.
        """
        hidden, state = self._decode(tokens, state)
        return self.logits(hidden), state

    def flops(self, batch: Batch) -> int:
        """Return the floating point operations of training on `batch`, forward and backward.

        They are 6 per weight of a matrix product and token, and 6 per product of the attention. The
        encoder skips the source's padding, but the attention reads it, and the decoder reads the
        target's padding. Gates and softmax are not counted.
        """
        assert batch.source is not None
        decoder = self.decoder
        rows, source_seq = batch.source.shape
        n_target = batch.target.numel()
        n_source = batch.source.numel()
        if batch.source_mask is not None:
            n_source = int(batch.source_mask.sum())
        products = n_matrix(self.encoder) * n_source
        products += n_matrix(decoder.init_state, decoder.init_cell) * rows
        per_step = n_matrix(
            decoder.embed_gates, decoder.layer_gates, decoder.cells, decoder.readout
        )
        products += (per_step + self.head_weight.numel()) * n_target
        if isinstance(decoder.attention, FixedContext):
            return 6 * (products + n_matrix(decoder.context_gates) * rows)
        keys = decoder.attention.k_proj
        queries = n_matrix(decoder.attention.q_proj, decoder.context_gates)
        products += n_matrix(keys) * rows * source_seq + queries * n_target
        return 6 * (products + (keys.out_features + keys.in_features) * n_target * source_seq)

    def _embed(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_embed"]:
        return self.dropout(self.embed_tokens(tokens))

    def _decode(
        self, tokens: Int[Tensor, "batch seq"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch seq d_embed"], DecoderState]:
        with self._autocast():
            return self.decoder(self._embed(tokens), state)

    def _autocast(self) -> torch.autocast:
        """Return the context that computes the recurrence in bfloat16.

        torch's recurrent layers cannot take converted weights, but autocast rounds their own once
        for all steps.
        """
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.compute_dtype == torch.bfloat16
        )


def n_matrix(*modules: nn.Module) -> int:
    """Return the number of weights in the matrices of `modules`."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)


def reversed_order(lengths: Int[Tensor, " batch"], seq: int) -> Int[Tensor, "batch {seq}"]:
    """Return the index that reverses the first `lengths` positions of each row.

    The other positions stay. The index is its own inverse.
    """
    index = torch.arange(seq, device=lengths.device)
    reverse = lengths[:, None] - 1 - index
    return torch.where(reverse >= 0, reverse, index)


@torch.no_grad()
def init_weights(model: Seq2Seq) -> None:
    """Draw fresh weights from torch's global generator.

    Recurrent matrices are orthogonal, gate by gate (Bahdanau et al. 2014, appendix B.1). Other
    matrices preserve the size of their input, normal(1/√d_in). So do the embeddings, because they
    are the rows of a tied head. They have length one, so the matrices that read them are normal(1),
    and words reach the gates at size one, too. Biases are zero, except for an LSTM's forget gate,
    where they are one (Jozefowicz et al. 2015, section 2.2).
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
