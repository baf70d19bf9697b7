"""Attention for training on CPUs by matrix products, where they are faster than torch's kernel.

With few keys, the weights are kept for the backward pass. With more, they are computed a block of
queries at a time, and again in the backward pass, as in FlashAttention (Dao et al. 2022, section
3.1). Keys after the last one that a block may attend to are left out.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seq2chat.nn.mask import causal_mask

BLOCK = 128  # queries at a time
MAX_KEPT_KEYS = 256  # with more, computing weights twice is faster than keeping them


def attend_in_training(
    q: Float[Tensor, "batch n_head n_query d_head"],
    k: Float[Tensor, "batch n_kv_head n_key d_head"],
    v: Float[Tensor, "batch n_kv_head n_key d_value"],
    mask: Bool[Tensor, "#batch #n_head n_query n_key"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "batch n_head n_query d_value"]:
    """Return `scaled_dot_product`. Its plain twin is `scaled_dot_product_plain`.

    A compiler gets the form that keeps the weights, to fuse the passes over the scores.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if torch.compiler.is_compiling() or k.shape[2] <= MAX_KEPT_KEYS:
        context = _attend_keeping_weights(q, k, v, mask, is_causal, scale)
    else:
        context = _BlockedAttention.apply(q, k, v, mask, is_causal, scale)
    if mask is not None:
        context = context.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return context


def _attend_keeping_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> Tensor:
    """Attend by few operations on the scores, which are the largest tensors.

    The queries are scaled instead, the mask is added, so that its gradient is the identity, and
    query heads that share a key head are rows of one product, so that no key is repeated.
    """
    batch, n_head, n_query, d_head = q.shape
    n_kv_head, n_key = k.shape[1:3]
    groups = batch * n_kv_head, n_head // n_kv_head * n_query
    queries = (q * scale).reshape(*groups, d_head)
    scores = torch.bmm(queries, k.reshape(-1, n_key, d_head).mT)
    scores = scores.view(batch, n_head, n_query, n_key)
    allowed = causal_mask(n_query, n_key, q.device) if is_causal else mask
    if allowed is not None:
        bias = torch.zeros_like(allowed, dtype=scores.dtype)
        scores = scores + bias.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1)
    context = torch.bmm(weights.view(*groups, n_key), v.reshape(-1, n_key, v.shape[-1]))
    return context.view(batch, n_head, n_query, -1)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.is_causal = is_causal
        ctx.scale = scale
        ctx.blocks = list(_blocks(q, k, mask, is_causal))
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        contexts = []
        for rows, n_key in ctx.blocks:
            weights, _ = _weights(q, keys, mask, rows, n_key, is_causal, scale)
            context = torch.bmm(weights, values[:, :n_key])
            contexts.append(context.view(*q.shape[:2], -1, v.shape[-1]))
        return torch.cat(contexts, dim=2)

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]  # the decorator hides its names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, mask = ctx.saved_tensors
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        # Sums over blocks are wide.
        wide = torch.promote_types(q.dtype, torch.float32)
        k_grad = torch.zeros_like(keys, dtype=wide)
        v_grad = torch.zeros_like(values, dtype=wide)
        q_grads = []
        for rows, n_key in ctx.blocks:
            weights, queries = _weights(q, keys, mask, rows, n_key, ctx.is_causal, ctx.scale)
            grad = grad_outputs[0][:, :, rows].reshape(len(keys), -1, v.shape[-1])
            v_grad[:, :n_key] += torch.bmm(weights.mT, grad)
            weights_grad = torch.bmm(grad, values[:, :n_key].mT)
            scores_grad = torch.ops.aten._softmax_backward_data(
                weights_grad, weights, -1, weights.dtype
            )
            k_grad[:, :n_key] += torch.bmm(scores_grad.mT, queries)
            queries_grad = torch.bmm(scores_grad, keys[:, :n_key]).mul_(ctx.scale)
            q_grads.append(queries_grad.view(*q.shape[:2], -1, q.shape[-1]))
        k_grad = k_grad.to(k.dtype).view(k.shape)
        v_grad = v_grad.to(v.dtype).view(v.shape)
        return torch.cat(q_grads, dim=2), k_grad, v_grad, None, None, None


def _blocks(
    q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool
) -> Iterator[tuple[slice, int]]:
    """Yield blocks of queries, and how many keys they need."""
    n_query = q.shape[2]
    n_key = k.shape[2]
    allowed = None
    if mask is not None and n_query > BLOCK:
        allowed = mask.any(0).any(0)
    for first in range(0, n_query, BLOCK):
        rows = slice(first, min(n_query, first + BLOCK))
        n_seen = n_key
        if is_causal:
            n_seen = rows.stop
        elif allowed is not None:
            seen = allowed[rows].any(0).nonzero()
            n_seen = int(seen[-1]) + 1 if len(seen) else 1
        yield rows, n_seen


def _weights(
    q: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    rows: slice,
    n_key: int,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the attention weights of a block of queries, and the scaled queries.

    Query heads that share a key head are rows of one product, so that no key is repeated.
    """
    batch, n_head = q.shape[:2]
    block = q[:, :, rows] * scale
    n_query = block.shape[2]
    queries = block.reshape(len(keys), -1, q.shape[-1])
    scores = torch.bmm(queries, keys[:, :n_key].mT)
    lowest = torch.finfo(scores.dtype).min
    of_heads = scores.view(batch, n_head, n_query, n_key)
    if is_causal:
        # All queries of the block see the keys before it.
        of_heads[..., rows].masked_fill_(~causal_mask(n_query, n_query, q.device), lowest)
    elif mask is not None:
        of_heads.masked_fill_(~mask[:, :, rows, :n_key], lowest)
    return torch.softmax(scores, dim=-1), queries
