"""GPT: a decoder-only Transformer in the layouts of published families.

The file reads top-down: GPT → Block → Attention, then sizes and weights.

`gpt2` is the layout of GPT-2 and GPT-3 (Radford et al. 2019; Brown et al. 2020): learned positions,
LayerNorm before each branch, GELU, biases, and the embedding as output head. With `window`, every
second layer is locally banded as in GPT-3, and the layout is GPT-Neo's: no biases on q, k and v,
and no 1/√d_head, which the weights of q absorb. The others have rotary positions, RMSNorm and
SwiGLU. `modern` is Qwen3's layout (Yang et al. 2025), which also normalizes each head's q and k.
`llama` does not (Touvron et al. 2023), `qwen2` has biases on q, k and v, and in `mistral` all
layers may be local.
"""

import math
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seq2chat.config import GPTConfig, check
from seq2chat.nn.attention import DotProductHeads
from seq2chat.nn.block import FeedForward, LayerNorm, Linear, RMSNorm, SwiGLU
from seq2chat.nn.cache import KVCache, LayerCache
from seq2chat.nn.int8 import Int8Linear
from seq2chat.nn.mask import branch_mask, causal_mask, causal_masks, document_mask, document_starts
from seq2chat.nn.position import Frequencies, Rotation, rotary, rotate
from seq2chat.nn.slots import SlotLayer, SlotRows
from seq2chat.text.batch import Batch


class Parts(NamedTuple):
    """The parts of a block in which the published families differ.

    `biases` names the linear maps with a bias. Without rotary positions, there are learned ones.
    """

    rotary: bool
    norm: type[LayerNorm | RMSNorm]
    feed_forward: type[FeedForward | SwiGLU]
    qk_norm: bool
    biases: frozenset[str]


QKV = frozenset({"q_proj", "k_proj", "v_proj"})
ATTENTION = QKV | {"o_proj"}
MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
LAYOUTS = {
    "gpt2": Parts(False, LayerNorm, FeedForward, False, ATTENTION | MLP),
    "modern": Parts(True, RMSNorm, SwiGLU, True, frozenset()),
    "llama": Parts(True, RMSNorm, SwiGLU, False, frozenset()),
    "qwen2": Parts(True, RMSNorm, SwiGLU, False, QKV),
    "mistral": Parts(True, RMSNorm, SwiGLU, False, frozenset()),
}


def parts_of(config: GPTConfig) -> Parts:
    """Return the parts of this model's blocks."""
    row = LAYOUTS[config.layout]
    biases = row.biases
    if config.layout == "gpt2" and config.window:
        biases -= QKV  # as in GPT-Neo
    if config.attention_bias:
        biases |= ATTENTION
    if config.mlp_bias:
        biases |= MLP
    return row._replace(biases=biases)


def frequencies_of(config: GPTConfig) -> Frequencies:
    """Return the frequencies of this model's rotary positions."""
    return Frequencies(
        config.d_head,
        config.rope_theta,
        config.rope_scaling,
        config.rope_factor,
        config.rope_context,
    )


class GPT(nn.Module):
    """A language model: the logits at a position depend on it and the positions before it."""

    reads_source: ClassVar[Literal[False]] = False

    def __init__(self, config: GPTConfig):
        super().__init__()
        check(
            config.vocab_size > 0,
            "model.vocab_size is 0; write the size of the tokenizer's vocabulary.",
        )
        self.config = config
        # Number format of the activations. None means the format of the weights. Weights, the sums
        # in norms and the softmax keep their own format.
        self.compute_dtype: torch.dtype | None = None
        # Recompute each block in the backward pass instead of keeping its activations (Chen et al.
        # 2016).
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = None
        if not parts_of(config).rotary:
            self.embed_positions = nn.Embedding(config.context, config.d_model)
        self.frequencies = frequencies_of(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.n_layer))
        self.norm = norm(config, config.d_model)
        self.lm_head: Linear | Int8Linear | None = None
        if not config.tie_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        init_weights(self)

    @property
    def context(self) -> int:
        """Maximum number of positions per row."""
        return self.config.context

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def product_dtype(self) -> torch.dtype:
        """Number format of the weights of the blocks' linear maps."""
        return cast(Block, self.layers[0]).self_attn.q_proj.weight.dtype

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_model"]:
        """The matrix from `hidden` to logits: the output head's, or the embedding if tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self, tokens: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the token that follows each position.

        `segments` numbers the documents packed in each row. Attention then stays inside a document
        and positions restart with it, so each document has the logits it has alone. Raises
        UserError for more than `config.context` positions.
        """
        return self.logits(self.hidden(tokens, segments))

    def logits(
        self, hidden: Float[Tensor, "batch seq d_model"]
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits for the hidden states."""
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return F.linear(hidden, self.embed_tokens.weight.to(hidden.dtype))

    def hidden(
        self, tokens: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the residual stream after the last norm, which the output head reads.

        Arguments as in `forward`.
        """
        seq = tokens.shape[1]
        self.check_context(seq)
        positions = torch.arange(seq, device=tokens.device)[None]
        allowed = None
        if segments is not None:
            starts = document_starts(segments)
            positions = positions - starts
            allowed = document_mask(starts)
        masks = causal_masks(seq, seq, self.config.window, allowed, tokens.device)
        return self._blocks(tokens, positions, masks, None)

    def branching(
        self, tokens: Int[Tensor, "batch seq"], branches: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return `hidden` for rows that consist of a trunk and several branches after it.

        `branches` is 0 on the trunk, then 1, 2, ... on its branches. A branch sees the trunk and
        itself, and its positions continue the trunk's. So a prompt with K answers is computed once
        instead of K times, and each answer gets the result that it has after its own copy of the
        prompt. Raises UserError if trunk and branch have more than `config.context` positions.
        """
        trunk = (branches == 0).sum(1, keepdim=True)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        positions = index - document_starts(branches) + trunk * (branches > 0)
        self.check_context(int(positions.max()) + 1)
        distance = positions[:, None, :, None] - positions[:, None, None, :]
        dense = causal_mask(len(index), len(index), tokens.device) & branch_mask(branches)
        local = dense & (distance < self.config.window) if self.config.window else None
        return self._blocks(tokens, positions, (dense, local), None)

    def flops(self, batch: Batch) -> int:
        """Return the floating point operations of training on `batch`; see `flops_per_token`."""
        return self._flops_per_token * batch.target.numel()

    @cached_property
    def _flops_per_token(self) -> int:
        return flops_per_token(self.config)

    def start(self, padding: Int[Tensor, " batch"] | None = None) -> KVCache:
        """Return an empty decoding state. `padding` counts the pad tokens before each prompt."""
        return KVCache(self.config.n_layer, padding)

    def step(
        self, tokens: Int[Tensor, "batch n_new"], state: KVCache
    ) -> tuple[Float[Tensor, "batch n_new vocab"], KVCache]:
        """Return the logits after each of the next `n_new` tokens of each row, and the new state.

        A text may come in portions of any size, for example token by token, and gets the same
        logits as in one call of `forward`. The state is updated in place. Raises UserError when a
        row would exceed `config.context`.
        """
        self.check_context(state.longest + tokens.shape[1])
        return self.logits(self.hidden_step(tokens, state)), state

    def hidden_step(
        self, tokens: Int[Tensor, "batch n_new"], state: KVCache | SlotRows
    ) -> Float[Tensor, "batch n_new d_model"]:
        """Return `hidden` at the next `n_new` tokens of each row, and extend the state by them.

        Positions beyond the context are clamped to the last one. Only padding may be there.
        """
        n_new = tokens.shape[1]
        device = tokens.device
        positions = state.positions(n_new, device).clamp(max=self.context - 1)
        return self._blocks(
            tokens, positions, state.masks(n_new, self.config.window, device), state
        )

    def _blocks(
        self,
        tokens: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "rows seq"],
        masks: tuple[Tensor | None, Tensor | None],
        state: KVCache | SlotRows | None,
    ) -> Float[Tensor, "batch seq d_model"]:
        x = self.embed_tokens(tokens)
        rotation = None
        caches = [None] * len(self.layers) if state is None else state.layers
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        x = self.dropout(x if self.compute_dtype is None else x.to(self.compute_dtype))
        if self.embed_positions is None:
            rotation = rotary(positions, self.frequencies, x.dtype)
        dense, local = masks
        for index, layer in enumerate(self.layers):
            mask = local if is_local(self.config, index) else dense
            inputs = x, rotation, mask, caches[index]
            recomputes = self.gradient_checkpointing and state is None and torch.is_grad_enabled()
            x = checkpoint(layer, *inputs, use_reentrant=False) if recomputes else layer(*inputs)
        return self.norm(x)

    def check_context(self, seq: int) -> None:
        """Raise UserError for more than `context` positions."""
        check(
            seq <= self.config.context,
            f"{seq} tokens do not fit the model's context of {self.config.context}.",
        )


class Block(nn.Module):
    """The pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, index: int):
        super().__init__()
        parts = parts_of(config)
        self.input_layernorm = norm(config, config.d_model)
        self.self_attn = Attention(config, parts)
        self.post_attention_layernorm = norm(config, config.d_model)
        shape = config.d_model, config.d_ff
        self.mlp = (
            FeedForward(*shape, activation="gelu_tanh")
            if parts.feed_forward is FeedForward
            else SwiGLU(*shape, bias=parts.biases >= MLP)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        rotation: Rotation | None,
        mask: Bool[Tensor, "#batch 1 seq n_key"] | None,
        cache: LayerCache | SlotLayer | None,
    ) -> Float[Tensor, "batch seq d_model"]:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Attention(nn.Module):
    """Causal multi-head self-attention. `heads` receives q and k after norm and rotation."""

    def __init__(self, config: GPTConfig, parts: Parts):
        super().__init__()
        is_gpt_neo = config.layout == "gpt2" and config.window > 0
        width = config.n_head * config.d_head
        kv_width = config.n_kv_head * config.d_head
        self.d_head = config.d_head
        self.q_proj = Linear(config.d_model, width, bias="q_proj" in parts.biases)
        self.k_proj = Linear(config.d_model, kv_width, bias="k_proj" in parts.biases)
        self.v_proj = Linear(config.d_model, kv_width, bias="v_proj" in parts.biases)
        self.o_proj = Linear(width, config.d_model, bias="o_proj" in parts.biases)
        self.q_norm = norm(config, config.d_head) if parts.qk_norm else nn.Identity()
        self.k_norm = norm(config, config.d_head) if parts.qk_norm else nn.Identity()
        self.heads = DotProductHeads(scale=1.0 if is_gpt_neo else config.d_head**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        rotation: Rotation | None,
        mask: Bool[Tensor, "#batch 1 seq n_key"] | None,
        cache: LayerCache | SlotLayer | None,
    ) -> Float[Tensor, "batch seq d_model"]:
        q = self.q_norm(self._split(self.q_proj(x))).transpose(1, 2)
        k = self.k_norm(self._split(self.k_proj(x))).transpose(1, 2)
        v = self._split(self.v_proj(x)).transpose(1, 2)
        if rotation is not None:
            q = rotate(q, *rotation)
            k = rotate(k, *rotation)
        if cache is not None:
            k, v = cache.append(k, v)
        # A cache may have a wider number format, which the products then use.
        context = self.heads(q.to(k.dtype), k, v, mask).to(x.dtype)
        return self.o_proj(context.transpose(1, 2).flatten(2))

    def _split(
        self, x: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch seq heads d_head"]:
        return x.unflatten(-1, (-1, self.d_head))


def norm(config: GPTConfig, width: int) -> LayerNorm | RMSNorm:
    """Return the layout's norm over the last `width` numbers."""
    return parts_of(config).norm(width, eps=config.norm_eps)


def is_local(config: GPTConfig, index: int) -> bool:
    """Return True if layer `index` is locally banded.

    With a window, layers 1, 3, 5, ... of gpt2 are, and all layers of mistral.
    """
    return config.window > 0 and (config.layout == "mistral" or index % 2 == 1)


@torch.no_grad()
def init_weights(model: GPT) -> None:
    """Draw fresh weights from torch's global generator.

    gpt2: normal(0.02). The last matrix of each branch is divided by √(2 n_layer) (Radford et al.
    2019, section 2.3), and a banded model's q by √d_head, the factor that its attention leaves out.

    others: the last matrix of each branch is zero, and the others preserve the size of their input,
    normal(1/√d_in). An untied embedding is normal(1) and its head nearly zero, so that the first
    loss is ln(vocab_size).
    """
    config = model.config
    gpt2 = config.layout == "gpt2"
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            if gpt2:
                parameter.normal_(std=0.02 / math.sqrt(2 * config.n_layer))
            else:
                parameter.zero_()
        elif config.window > 0 and name.endswith("q_proj.weight"):
            parameter.normal_(std=0.02 / math.sqrt(config.d_head))
        elif gpt2 or (config.tie_embeddings and name == "embed_tokens.weight"):
            parameter.normal_(std=0.02)
        elif name == "embed_tokens.weight":
            parameter.normal_(std=1.0)
        elif name == "lm_head.weight":
            parameter.normal_(std=0.001)
        else:
            parameter.normal_(std=parameter.shape[1] ** -0.5)


def flops_per_token(config: GPTConfig) -> int:
    """Return the floating point operations per token of training on full contexts.

    Forward and backward pass take 6 N + 12 n_layer n_head d_head n_key (Chowdhery et al. 2022,
    PaLM, appendix B). N counts the weights of matrix products, the head included and
    embeddings excluded. n_key is the context, or the window of a local layer. By convention the
    scores that causality hides are counted, while norms, biases and softmax are not.
    """
    with torch.device("meta"):
        model = GPT(config)
    n_matmul = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, nn.Linear))
    n_matmul += model.head_weight.numel()
    keys = (
        config.window if is_local(config, index) else config.context
        for index in range(config.n_layer)
    )
    return 6 * n_matmul + 12 * config.n_head * config.d_head * sum(
        min(n_key, config.context) for n_key in keys
    )
