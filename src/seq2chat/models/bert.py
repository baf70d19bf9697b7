"""BERT (Devlin et al. 2018): an encoder that learns to guess masked tokens.

The file reads top-down: BERT → Block → MaskedLMHead → weights. Every position sees the whole row.
As in the published weights, each branch is added and then normalized, and GELU is the exact one,
with erf.
"""

from typing import ClassVar, Literal, Never

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seq2chat.config import BERTConfig, UserError, check
from seq2chat.nn.attention import MultiHeadAttention
from seq2chat.nn.block import FeedForward, LayerNorm, Linear
from seq2chat.text.batch import IGNORED, Batch


class BERT(nn.Module):
    """A masked language model: the logits at each position depend on the whole row."""

    reads_source: ClassVar[Literal[False]] = False

    def __init__(self, config: BERTConfig):
        super().__init__()
        check(
            config.vocab_size > 0,
            "model.vocab_size is 0; write the size of the tokenizer's vocabulary.",
        )
        self.config = config
        # Number format of the activations. None means the format of the weights. Weights, the sums
        # in norms and the softmax keep their own format.
        self.compute_dtype: torch.dtype | None = None
        width = config.d_model
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.context, width)
        self.embed_segments = nn.Embedding(2, width)
        self.embed_norm = LayerNorm(width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.mlm_head = MaskedLMHead(config) if config.masked_lm else None
        self.pooler = Linear(width, width) if config.next_sentence else None
        self.next_sentence_head = Linear(width, 2) if config.next_sentence else None
        init_weights(self)

    @property
    def context(self) -> int:
        """Maximum number of positions per row."""
        return self.config.context

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the token at each position.

        `mask` is True where there is a token, and None means everywhere. Padding never changes the
        logits of tokens. `segments` is 0 in the first sentence of a row and 1 in the second, and
        None means 0. Raises UserError for more than `config.context` positions, and for a model
        without `config.masked_lm`.
        """
        return self.logits(self.hidden(tokens, mask, segments))

    def logits(self, hidden: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape vocab"]:
        """Return the output of the masked-LM head for `hidden`, which may have selected positions.

        Selecting pays: the head costs d_model · vocab_size per position, and training needs 15 % of
        the positions.
        """
        if self.mlm_head is None:
            raise UserError(
                "This BERT is an encoder without the head that guesses tokens; use one that has it."
            )
        return self.mlm_head(hidden, self.embed_tokens.weight)

    def next_sentence_logits(
        self, hidden: Float[Tensor, "batch seq d_model"]
    ) -> Float[Tensor, "batch 2"]:
        """Return the logits of "the second sentence follows the first" and of "it does not".

        They are read at [CLS].
        """
        assert self.pooler is not None
        assert self.next_sentence_head is not None
        return self.next_sentence_head(torch.tanh(self.pooler(hidden[:, 0])))

    def hidden(
        self,
        tokens: Int[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the output of the last block, which the heads read.

        Arguments as in `forward`.
        """
        seq = tokens.shape[1]
        check(
            seq <= self.config.context,
            f"{seq} tokens do not fit the model's context of {self.config.context}.",
        )
        positions = torch.arange(seq, device=tokens.device)
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = (
            self.embed_tokens(tokens)
            + self.embed_positions(positions)
            + self.embed_segments(segments)
        )
        x = self.embed_norm(x)
        x = self.dropout(x if self.compute_dtype is None else x.to(self.compute_dtype))
        keys = None if mask is None else mask[:, None, None]
        for layer in self.layers:
            x = layer(x, keys)
        return x

    def start(self, padding: Int[Tensor, " batch"] | None = None) -> Never:
        """Raise UserError: an encoder cannot generate."""
        raise UserError(
            "A BERT sees both sides of a text and cannot generate one; use `seq2chat fill-mask`."
        )

    def flops(self, batch: Batch) -> int:
        """Return the floating point operations of training on `batch`, padding included.

        Forward and backward pass take 6 per weight of a matrix product and position, and 12 d_model
        per pair of a query and a key in each layer (Chowdhery et al. 2022, PaLM, appendix B).
        Norms, biases and softmax are not counted.
        """
        c = self.config
        rows, seq = batch.target.shape
        block = 6 * (4 * c.d_model**2 + 2 * c.d_model * c.d_ff) + 12 * c.d_model * seq
        total = c.n_layer * block * rows * seq
        if c.masked_lm:
            n_masked = int((batch.labels != IGNORED).sum())
            total += 6 * (c.d_model**2 + c.d_model * c.vocab_size) * n_masked
        if c.next_sentence and batch.is_next is not None:
            total += 6 * (c.d_model**2 + 2 * c.d_model) * rows
        return total


class Block(nn.Module):
    """The post-norm residual block: x ← norm(x + attention(x)), then norm(x + feed_forward(x))."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.self_attn = MultiHeadAttention(config.d_model, config.n_head, causal=False)
        self.self_attn_norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.mlp = FeedForward(config.d_model, config.d_ff, activation="gelu")
        self.mlp_norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch 1 1 seq"] | None
    ) -> Float[Tensor, "batch seq d_model"]:
        x = self.self_attn_norm(x + self.dropout(self.self_attn(x, self.self_attn.memory(x), mask)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class MaskedLMHead(nn.Module):
    """norm(GELU(dense(hidden))) Eᵀ + bias, with the token embedding E as output matrix."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.dense = Linear(config.d_model, config.d_model)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "*shape d_model"], embedding: Float[Tensor, "vocab d_model"]
    ) -> Float[Tensor, "*shape vocab"]:
        x = self.norm(F.gelu(self.dense(hidden)))
        return F.linear(x, embedding.to(x.dtype), self.bias.to(x.dtype))


@torch.no_grad()
def init_weights(model: BERT) -> None:
    """Draw fresh weights from torch's global generator.

    normal(0.02), biases 0 and norms 1, as in the code of Devlin et al.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(std=0.02)
