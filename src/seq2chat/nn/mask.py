"""Attention masks as boolean tensors: True = attend. Combine them with `&`."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def causal_mask(
    n_query: int, n_key: int, device: torch.device | None = None
) -> Bool[Tensor, "{n_query} {n_key}"]:
    """Return the causal mask: position i sees j ≤ i.

    The queries are the last `n_query` of the `n_key` positions.

    >>> causal_mask(2, 3).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return _distance(n_query, n_key, device) >= 0


def banded_mask(
    n_query: int, n_key: int, window: int, device: torch.device | None = None
) -> Bool[Tensor, "{n_query} {n_key}"]:
    """Return the mask of a local layer: position i sees the last `window` positions.

    These are j in (i - window, i]. For example, GPT-Neo's local layers use it, after GPT-3's
    locally banded ones (Brown et al. 2020, section 2.1).

    >>> banded_mask(4, 4, window=2).int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    distance = _distance(n_query, n_key, device)
    return (distance >= 0) & (distance < window)


def causal_masks(
    n_query: int,
    n_key: int,
    window: int,
    allowed: Bool[Tensor, "batch 1 query key"] | None,
    device: torch.device | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the masks of dense and of local layers, broadcastable to (batch, n_head, query, key).

    `allowed` is True where a row may attend at all. None means everywhere. The first result is None
    for plain causal attention, which the fused kernel computes without a mask. The second is the
    first if no key is outside of the window, and None if `window` is 0, as then no layer is local.
    """

    def restricted(mask: Bool[Tensor, "query key"]) -> Bool[Tensor, "#batch 1 query key"]:
        return mask[None, None] if allowed is None else mask & allowed

    is_plain = allowed is None and n_query in (1, n_key)
    dense = None if is_plain else restricted(causal_mask(n_query, n_key, device))
    if n_key <= window:
        return dense, dense
    local = restricted(banded_mask(n_query, n_key, window, device)) if window else None
    return dense, local


def document_mask(starts: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 seq seq"]:
    """Return the mask of positions in the same document, given `document_starts`."""
    return (starts[:, :, None] == starts[:, None, :])[:, None]


def branch_mask(branches: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 seq seq"]:
    """Return the mask of positions in the same branch or in the trunk, which is branch 0."""
    is_same = branches[:, :, None] == branches[:, None, :]
    is_trunk = branches[:, None, :] == 0
    return (is_same | is_trunk)[:, None]


def padding_mask(
    padding: Int[Tensor, " batch"], n_query: int, n_key: int
) -> Bool[Tensor, "batch 1 {n_query} {n_key}"]:
    """Return the mask that hides the first `padding` keys of each row, except from themselves.

    A padded position sees itself, because a softmax over nothing is NaN, and NaN times a weight of
    zero is NaN.
    """
    is_real = torch.arange(n_key, device=padding.device) >= padding[:, None]
    return is_real[:, None, None, :] | (_distance(n_query, n_key, padding.device) == 0)


def document_starts(segments: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Return the index of the first position of each position's document.

    A document ends where the segment id changes.

    >>> document_starts(torch.tensor([[0, 0, 1, 1, 1, 2]]))
    tensor([[0, 0, 2, 2, 2, 5]])
    """
    index = torch.arange(segments.shape[1], device=segments.device)
    is_start = torch.ones_like(segments, dtype=torch.bool)
    is_start[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return torch.where(is_start, index, 0).cummax(dim=1).values


def _distance(
    n_query: int, n_key: int, device: torch.device | None
) -> Int[Tensor, "{n_query} {n_key}"]:
    """Return i - j for the absolute positions i of the queries and j of the keys."""
    i = torch.arange(n_key - n_query, n_key, device=device)
    return i[:, None] - torch.arange(n_key, device=device)
