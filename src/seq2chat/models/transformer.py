"""The encoder-decoder Transformer (Vaswani et al. 2017).

The file reads top-down: Transformer → blocks → Residual → weights.

The encoder reads the source in both directions. The decoder reads the target up to each position
and, by cross-attention, the encoder's output. All linear maps have biases, as in fairseq, Marian
and torch.nn.Transformer. `norm = "post"` is the paper's block, which normalizes after each
addition. `"pre"` normalizes the input of each branch and the output of both stacks, which trains
without a long warmup (Xiong et al. 2020).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seq2chat.config import TransformerConfig, check
from seq2chat.nn.attention import KeysAndValues, MultiHeadAttention
from seq2chat.nn.block import FeedForward, LayerNorm, Linear
from seq2chat.nn.cache import LayerCache
from seq2chat.nn.mask import causal_mask
from seq2chat.nn.position import sinusoids
from seq2chat.text.batch import Batch


@dataclass
class State:
    """The decoding state: the memory of cross-attention, and the cache of self-attention.

    Both have one entry per layer. `memory` holds the keys and values of the source, and `mask` is
    True where the source has a token. Row i translates row `origin[i]` of the source that was
    passed to `start`.
    """

    memory: list[KeysAndValues]
    mask: Bool[Tensor, "batch 1 1 source_seq"] | None
    origin: Int[Tensor, " batch"]
    caches: list[LayerCache]

    @property
    def length(self) -> int:
        """Number of target tokens stored so far."""
        return self.caches[0].length

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace row i by the previous row `rows[i]`. Rows may be dropped or repeated."""
        for cache in self.caches:
            cache.reorder(rows)
        origin = self.origin[rows]
        # Beam search mostly reorders rows of the same source, which need no copy of the memory.
        if not torch.equal(origin, self.origin):
            self.memory = [(k[rows], v[rows]) for k, v in self.memory]
            self.mask = None if self.mask is None else self.mask[rows]
            self.origin = origin


class Transformer(nn.Module):
    """A translation model: the logits depend on the source and the target up to each position."""

    reads_source: ClassVar[Literal[True]] = True

    def __init__(self, config: TransformerConfig):
        super().__init__()
        check(
            config.vocab_size > 0,
            "model.vocab_size is 0; write the size of the tokenizer's vocabulary.",
        )
        self.config = config
        # Number format of the activations. None means the format of the weights. Weights, the sums
        # in norms and the softmax keep their own format.
        self.compute_dtype: torch.dtype | None = None
        shape = config.vocab_size, config.d_model
        positions = config.context, config.d_model
        learned = config.positions == "learned"
        self.embed_source = None if config.tie_embeddings else nn.Embedding(*shape)
        self.embed_tokens = nn.Embedding(*shape)
        self.embed_source_positions = nn.Embedding(*positions) if learned else None
        self.embed_positions = nn.Embedding(*positions) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.n_layer))
        self.encoder_norm = final_norm(config)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layer))
        self.decoder_norm = final_norm(config)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        init_weights(self)

    @property
    def context(self) -> int:
        """Maximum number of tokens of a source, and of a target."""
        return self.config.context

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_model"]:
        """The matrix from `hidden` to logits: the output head's, or the embedding if tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        source: Int[Tensor, "batch source_seq"],
        target: Int[Tensor, "batch seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the token that follows each position of `target`.

        `target` starts with the end token. `source_mask` is True where the source has a token, None
        means everywhere. Raises UserError when either side has more than `config.context` tokens.
        """
        return self.logits(self.hidden(source, target, source_mask))

    def logits(
        self, hidden: Float[Tensor, "batch seq d_model"]
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits for the hidden states."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def hidden(
        self,
        source: Int[Tensor, "batch source_seq"],
        target: Int[Tensor, "batch seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the decoder's output after the last norm, which the output head reads.

        Arguments as in `forward`.
        """
        memory, mask = self._encode(source, source_mask)
        return self._decode(target, memory, mask, None)

    def start(
        self,
        source: Int[Tensor, "batch source_seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None = None,
    ) -> State:
        """Return the decoding state before the first target token: the encoded source.

        Arguments as in `forward`.
        """
        memory, mask = self._encode(source, source_mask)
        origin = torch.arange(len(source), device=source.device)
        return State(memory, mask, origin, [LayerCache() for _ in self.decoder])

    def step(
        self, tokens: Int[Tensor, "batch n_new"], state: State
    ) -> tuple[Float[Tensor, "batch n_new vocab"], State]:
        """Return the logits after each of the next `n_new` target tokens, and the new state.

        A target may come in portions of any size, for example token by token, and gets the same
        logits as in one call of `forward`. The state is updated in place. Raises UserError when the
        target would exceed `config.context`.
        """
        return self.logits(self._decode(tokens, state.memory, state.mask, state.caches)), state

    def flops(self, batch: Batch) -> int:
        """Return the floating point operations of training on `batch`, padding included.

        Forward and backward pass take 6 per weight of a matrix product and token, and 12 d_model
        per pair of a query and a key in each layer (Chowdhery et al. 2022, PaLM, appendix B). Pairs
        that causality hides are counted, while norms, biases and softmax are not.
        """
        assert batch.source is not None
        c = self.config
        rows, t = batch.target.shape
        s = batch.source.shape[1]
        # Six square matrices per layer on either side. A source token passes the encoder's q, k, v
        # and o, and k and v of cross-attention. A target token passes the decoder's q, k, v and o,
        # and q and o of cross-attention.
        block = c.n_layer * (6 * c.d_model**2 + 2 * c.d_model * c.d_ff)
        products = 6 * (s * block + t * (block + self.head_weight.numel()))
        return rows * (products + 12 * c.n_layer * c.d_model * (s * s + t * t + s * t))

    def _encode(
        self,
        source: Int[Tensor, "batch source_seq"],
        source_mask: Bool[Tensor, "batch source_seq"] | None,
    ) -> tuple[list[KeysAndValues], Bool[Tensor, "batch 1 1 source_seq"] | None]:
        """Return the keys and values of the source for each decoder layer, and their mask."""
        self._check_context("source", source.shape[1])
        mask = None if source_mask is None else source_mask[:, None, None, :]
        x = self._embed(
            source, 0, self.embed_source or self.embed_tokens, self.embed_source_positions
        )
        for layer in self.encoder:
            x = layer(x, mask)
        x = self.encoder_norm(x)
        decoder = cast(Iterable[DecoderBlock], self.decoder)
        return [layer.cross_attn.memory(x) for layer in decoder], mask

    def _decode(
        self,
        tokens: Int[Tensor, "batch seq"],
        memory: list[KeysAndValues],
        memory_mask: Bool[Tensor, "batch 1 1 source_seq"] | None,
        caches: list[LayerCache] | None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the hidden states of `tokens`, which follow the tokens in `caches`, if any."""
        n_new = tokens.shape[1]
        n_past = caches[0].length if caches else 0
        self._check_context("target", n_past + n_new)
        # None means plain causal attention, which the fused kernel computes without a mask.
        mask = None
        if n_past > 0 and n_new > 1:
            mask = causal_mask(n_new, n_past + n_new, tokens.device)[None, None]
        x = self._embed(tokens, n_past, self.embed_tokens, self.embed_positions)
        for index, layer in enumerate(self.decoder):
            x = layer(x, mask, caches[index] if caches else None, memory[index], memory_mask)
        return self.decoder_norm(x)

    def _embed(
        self,
        tokens: Int[Tensor, "batch seq"],
        first: int,
        embed_tokens: nn.Embedding,
        positions: nn.Embedding | None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return √d_model times the embeddings (section 3.4) plus the positions (section 3.5).

        `first` is the position of the first token.
        """
        index = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        x = embed_tokens(tokens) * math.sqrt(self.config.d_model)
        if positions is None:
            x = x + sinusoids(index, self.config.d_model, x.dtype)
        else:
            x = x + positions(index)
        return self.dropout(x if self.compute_dtype is None else x.to(self.compute_dtype))

    def _check_context(self, side: str, seq: int) -> None:
        context = self.config.context
        check(
            seq <= context,
            f"The {side} has {seq} tokens, and the model's context is {context}; shorten it, or "
            "train with a larger model.context.",
        )


class EncoderBlock(nn.Module):
    """Self-attention over the whole source, then a feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attn = MultiHeadAttention(config.d_model, config.n_head, causal=False)
        self.mlp = FeedForward(config.d_model, config.d_ff, config.activation)
        self.self_attn_residual = Residual(config)
        self.mlp_residual = Residual(config)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch 1 1 seq"] | None
    ) -> Float[Tensor, "batch seq d_model"]:
        x = self.self_attn_residual(x, lambda y: self.self_attn(y, self.self_attn.memory(y), mask))
        return self.mlp_residual(x, self.mlp)


class DecoderBlock(nn.Module):
    """Self-attention over the target so far, cross-attention over the source, a feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attn = MultiHeadAttention(config.d_model, config.n_head, causal=True)
        self.cross_attn = MultiHeadAttention(config.d_model, config.n_head, causal=False)
        self.mlp = FeedForward(config.d_model, config.d_ff, config.activation)
        self.self_attn_residual = Residual(config)
        self.cross_attn_residual = Residual(config)
        self.mlp_residual = Residual(config)

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        mask: Bool[Tensor, "1 1 seq n_seen"] | None,
        cache: LayerCache | None,
        source: KeysAndValues,
        source_mask: Bool[Tensor, "batch 1 1 source_seq"] | None,
    ) -> Float[Tensor, "batch seq d_model"]:
        def self_attention(y: Tensor) -> Tensor:
            new = self.self_attn.memory(y)
            return self.self_attn(y, new if cache is None else cache.append(*new), mask)

        x = self.self_attn_residual(x, self_attention)
        x = self.cross_attn_residual(x, lambda y: self.cross_attn(y, source, source_mask))
        return self.mlp_residual(x, self.mlp)


class Residual(nn.Module):
    """x + branch(norm(x)), or norm(x + branch(x)) as in the paper, with dropout on the branch.

    See section 5.4.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.pre = config.norm == "pre"
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], branch: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch seq d_model"]:
        if self.pre:
            return x + self.dropout(branch(self.norm(x)))
        return self.norm(x + self.dropout(branch(x)))


def final_norm(config: TransformerConfig) -> nn.Module:
    """Return the norm after a stack. Post-norm blocks need none, as they end with their own."""
    return LayerNorm(config.d_model, eps=config.norm_eps) if config.norm == "pre" else nn.Identity()


@torch.no_grad()
def init_weights(model: Transformer) -> None:
    """Draw fresh weights from torch's global generator.

    Embeddings are normal(1/√d_model), so that √d_model times them has the size of a norm's output.
    An untied head is nearly zero, so that the first loss is ln(vocab_size). Matrices of post-norm
    blocks are Xavier-uniform (Glorot and Bengio 2010). A pre-norm block starts as the identity: the
    last matrix of each branch is zero, and the others preserve the size of their input,
    normal(1/√d_in).
    """
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif name.startswith("embed_"):
            parameter.normal_(std=config.d_model**-0.5)
        elif name == "lm_head.weight":
            parameter.normal_(std=0.001)
        elif config.norm == "post":
            nn.init.xavier_uniform_(parameter)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        else:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
