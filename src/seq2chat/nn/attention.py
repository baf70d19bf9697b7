"""Attention: query → weights over a memory → context, from 2014 to now.

Scaled dot products (Vaswani et al. 2017, section 3.2.1) have a fast path, torch's fused kernel,
which never forms the weights. A plain twin spells the formula out and returns them, and a test
holds the two equal. Additive attention (Bahdanau et al. 2014) compares with a small network. A
fixed context is additive attention that ignores the query.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seq2chat.nn.block import Linear
from seq2chat.nn.mask import causal_mask
from seq2chat.nn.trained_attention import attend_in_training

KeysAndValues = tuple[
    Float[Tensor, "batch n_head n_key d_head"], Float[Tensor, "batch n_head n_key d_head"]
]

# Up to this many keys, torch's fused kernel trains slower on CPUs than products, in bfloat16 and
# compiled (docs/log.md).
MAX_TRAINED_KEYS = 512

MAX_PRODUCT_QUERIES = 32  # as many as the engine reads per chunk of a prompt


def scaled_dot_product(
    q: Float[Tensor, "batch n_head n_query d_head"],
    k: Float[Tensor, "batch n_kv_head n_key d_head"],
    v: Float[Tensor, "batch n_kv_head n_key d_value"],
    mask: Bool[Tensor, "#batch #n_head n_query n_key"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "batch n_head n_query d_value"]:
    """Return softmax(scale · q kᵀ) v with the fused kernel. `scale` is 1/√d_head by default.

    `mask` is True where a query may attend. A query that may attend nowhere gets zeros. `is_causal`
    means the causal mask of equally many queries and keys, without storing it. With fewer key heads
    than query heads, neighboring query heads share one (grouped-query attention, Ainslie et al.
    2023). For example, 8 query heads share 2 key heads in groups of 4. Raises ValueError for a mask
    together with `is_causal`.

    A query of zeros attends everywhere equally, so its context is the mean of the values:

    >>> q = torch.zeros(1, 1, 1, 2)
    >>> k = torch.randn(1, 1, 3, 2)
    >>> v = torch.tensor([[[[0.0], [3.0], [6.0]]]])
    >>> scaled_dot_product(q, k, v).item()
    3.0
    """
    if is_causal and mask is not None:
        raise ValueError("Give a mask or is_causal, not both.")
    on_cpu = q.device.type == "cpu"
    is_trained = on_cpu and q.requires_grad and k.shape[2] <= MAX_TRAINED_KEYS
    if is_trained and (q.dtype == torch.bfloat16 or torch.compiler.is_compiling()):
        return attend_in_training(q, k, v, mask, is_causal, scale)
    if on_cpu and q.shape[2] <= MAX_PRODUCT_QUERIES and mask is not None:
        return attend_by_products(q, k, v, mask, scale)
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )


def attend_by_products(
    q: Float[Tensor, "batch n_head n_query d_head"],
    k: Float[Tensor, "batch n_kv_head n_key d_head"],
    v: Float[Tensor, "batch n_kv_head n_key d_value"],
    mask: Bool[Tensor, "#batch #n_head n_query n_key"],
    scale: float | None = None,
) -> Float[Tensor, "batch n_head n_query d_value"]:
    """Return `scaled_dot_product` of few queries, computed by two matrix products.

    On CPUs the last bits of torch's fused kernel depend on the thread that computes a row, so a
    generated text could depend on other requests. The bits of these products do not.
    """
    batch, n_head, n_query, d_head = q.shape
    n_kv_head = k.shape[1]
    n_shared = n_head // n_kv_head
    # Query heads that share a key head are rows of one product.
    scores = q.reshape(batch, n_kv_head, n_shared * n_query, d_head) @ k.transpose(-1, -2)
    scores = scores.view(batch, n_head, n_query, -1) * (d_head**-0.5 if scale is None else scale)
    is_masked = ~mask
    scores = scores.masked_fill(is_masked, torch.finfo(scores.dtype).min)
    # The second fill gives zeros to a query that may attend nowhere, as in the kernel.
    weights = torch.softmax(scores, dim=-1).masked_fill(is_masked, 0.0)
    context = weights.view(batch, n_kv_head, n_shared * n_query, -1) @ v
    return context.view(batch, n_head, n_query, -1)


def scaled_dot_product_plain(
    q: Float[Tensor, "batch n_head n_query d_head"],
    k: Float[Tensor, "batch n_kv_head n_key d_head"],
    v: Float[Tensor, "batch n_kv_head n_key d_value"],
    mask: Bool[Tensor, "#batch #n_head n_query n_key"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[
    Float[Tensor, "batch n_head n_query d_value"], Float[Tensor, "batch n_head n_query n_key"]
]:
    """Return the context and the attention weights, by the formula of the paper.

    This is the plain twin of `scaled_dot_product`, and raises as it does.
    """
    if is_causal and mask is not None:
        raise ValueError("Give a mask or is_causal, not both.")
    n_shared = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(n_shared, dim=1)
    v = v.repeat_interleave(n_shared, dim=1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = causal_mask(q.shape[-2], k.shape[-2], q.device)
    if mask is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        # Not -inf, because a row full of it would become NaN. A query that may attend nowhere has
        # weights of zero, as in the kernel.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1) * mask.any(-1, keepdim=True)
    return weights @ v, weights


class DotProductHeads(nn.Module):
    """The heads of one layer: a module without parameters, so that hooks can observe q, k and v.

    Without a mask, the queries of `causal` heads see no later keys, and a single query is the last
    position. Queries of other heads see all keys.
    """

    def __init__(self, scale: float, causal: bool = True):
        super().__init__()
        self.scale = scale
        self.causal = causal

    def forward(
        self,
        q: Float[Tensor, "batch n_head n_query d_head"],
        k: Float[Tensor, "batch n_kv_head n_key d_head"],
        v: Float[Tensor, "batch n_kv_head n_key d_head"],
        mask: Bool[Tensor, "#batch 1 n_query n_key"] | None = None,
    ) -> Float[Tensor, "batch n_head n_query d_head"]:
        """Return the context of each head."""
        is_causal = self.causal and mask is None and q.shape[-2] > 1
        return scaled_dot_product(q, k, v, mask, is_causal=is_causal, scale=self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale:.4g}, causal={self.causal}"


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2), with biases.

    The queries of one sequence attend to a memory of keys and values, which come from the same
    sequence (self-attention) or from another one (cross-attention).
    """

    def __init__(self, d_model: int, n_head: int, causal: bool):
        super().__init__()
        self.n_head = n_head
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.o_proj = Linear(d_model, d_model)
        self.heads = DotProductHeads(scale=(d_model // n_head) ** -0.5, causal=causal)

    def memory(self, y: Float[Tensor, "batch n_key d_model"]) -> KeysAndValues:
        """Return the keys and values of `y`, each (batch, n_head, n_key, d_head)."""
        return self._split(self.k_proj(y)), self._split(self.v_proj(y))

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        memory: KeysAndValues,
        mask: Bool[Tensor, "#batch 1 #seq n_key"] | None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the attention output per position of `x`. `mask` is True where it may attend."""
        mask = None if mask is None else mask.expand(-1, -1, x.shape[1], -1)
        k, v = memory
        context = self.heads(self._split(self.q_proj(x)), k, v, mask)
        return self.o_proj(context.transpose(1, 2).flatten(2))

    def _split(
        self, x: Float[Tensor, "batch seq d_model"]
    ) -> Float[Tensor, "batch n_head seq d_head"]:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)


class Source(NamedTuple):
    """The memory of `AdditiveAttention`, with the part of its scores that no query changes."""

    annotations: Float[Tensor, "batch source_seq d_memory"]
    keys: Float[Tensor, "batch source_seq d_attention"]
    mask: Bool[Tensor, "batch source_seq"]


class AdditiveAttention(nn.Module):
    """c_i = Σ_j α_ij h_j with α_i = softmax_j(e_ij) and e_ij = vᵀ tanh(W s_{i-1} + U h_j).

    Bahdanau et al. 2014, section 3.1 and appendix A.1.2.
    """

    def __init__(self, d_query: int, d_memory: int, d_attention: int):
        super().__init__()
        self.q_proj = Linear(d_query, d_attention, bias=False)
        self.k_proj = Linear(d_memory, d_attention, bias=False)
        self.score = Linear(d_attention, 1, bias=False)

    def prepare(
        self,
        annotations: Float[Tensor, "batch source_seq d_memory"],
        mask: Bool[Tensor, "batch source_seq"],
        summary: Float[Tensor, "batch d_memory"],
    ) -> Source:
        """Return the memory to attend to: the annotations h_j, and U h_j for all queries.

        `mask` is True where there is a word.
        """
        return Source(annotations, self.k_proj(annotations), mask)

    def forward(
        self, query: Float[Tensor, "batch d_query"], memory: Source
    ) -> tuple[Float[Tensor, "batch d_memory"], Float[Tensor, "batch source_seq"]]:
        """Return the context and the weights. Both are zero in a row without any word."""
        scores = self.score(torch.tanh(self.q_proj(query)[:, None] + memory.keys)).squeeze(-1)
        scores = scores.masked_fill(~memory.mask, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1) * memory.mask.any(-1, keepdim=True)
        return (weights[:, None] @ memory.annotations).squeeze(1), weights


class FixedContext(nn.Module):
    """c_i = the summary of the source, independent of the query.

    With it, additive attention becomes the RNN encoder-decoder of Cho et al. 2014 and Sutskever et
    al. 2014 (Bahdanau et al. 2014, appendix A.2.2).
    """

    def prepare(
        self,
        annotations: Float[Tensor, "batch source_seq d_memory"],
        mask: Bool[Tensor, "batch source_seq"],
        summary: Float[Tensor, "batch d_memory"],
    ) -> Float[Tensor, "batch d_memory"]:
        """Return the memory, which is just the summary."""
        return summary

    def forward(
        self, query: Float[Tensor, "batch d_query"], memory: Float[Tensor, "batch d_memory"]
    ) -> tuple[Float[Tensor, "batch d_memory"], None]:
        """Return the context, and no weights."""
        return memory, None
