"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1): query → weights over a memory → context.

The fast path is torch's fused kernel, which never forms the weights. Its plain twin spells the formula out and returns
them; a test holds the two equal.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seq2chat.nn.mask import causal_mask

# On CPUs torch's fused kernel takes twice the time of the plain products to train on sequences up to this long.
SHORT = 512


def scaled_dot_product(
    q: Float[Tensor, "batch n_head n_query d_head"],
    k: Float[Tensor, "batch n_kv_head n_key d_head"],
    v: Float[Tensor, "batch n_kv_head n_key d_value"],
    mask: Bool[Tensor, "#batch #n_head n_query n_key"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "batch n_head n_query d_value"]:
    """Return softmax(scale · q kᵀ) v with the fused kernel; `scale` is 1/√d_head unless given.

    `mask` is True where a query may attend; every query must attend somewhere. `is_causal` is the mask of equally many
    queries and keys without storing it. With fewer key heads than query heads, neighbouring query heads share one
    (grouped-query attention, Ainslie et al. 2023).
    """
    if q.device.type == "cpu" and q.requires_grad and k.shape[2] <= SHORT:
        return scaled_dot_product_plain(q, k, v, mask, is_causal, scale)[0]
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=grouped)


def scaled_dot_product_plain(
    q: Float[Tensor, "batch n_head n_query d_head"],
    k: Float[Tensor, "batch n_kv_head n_key d_head"],
    v: Float[Tensor, "batch n_kv_head n_key d_value"],
    mask: Bool[Tensor, "#batch #n_head n_query n_key"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch n_head n_query d_value"], Float[Tensor, "batch n_head n_query n_key"]]:
    """Return the context and the attention weights, as written in the paper; the twin of `scaled_dot_product`."""
    n_shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n_shared, dim=1), v.repeat_interleave(n_shared, dim=1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = causal_mask(q.shape[-2], k.shape[-2], q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    return weights @ v, weights


class DotProductHeads(nn.Module):
    """The heads of one layer, without parameters: a place where q, k and v, ready to be compared, pass in the open."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(
        self,
        q: Float[Tensor, "batch n_head n_query d_head"],
        k: Float[Tensor, "batch n_kv_head n_key d_head"],
        v: Float[Tensor, "batch n_kv_head n_key d_head"],
        mask: Bool[Tensor, "#batch 1 n_query n_key"] | None = None,
    ) -> Float[Tensor, "batch n_head n_query d_head"]:
        """Return the context of every head. Without a mask it is causal; a single query is the last position."""
        return scaled_dot_product(q, k, v, mask, is_causal=mask is None and q.shape[-2] > 1, scale=self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale:.4g}"
