"""Who may attend to whom, as boolean tensors: True = attend. Combine them with `&`."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def causal_mask(
    n_query: int, n_key: int, device: torch.device | None = None
) -> Bool[Tensor, "{n_query} {n_key}"]:
    """Return (n_query, n_key): position i sees j ≤ i. The queries are the last `n_query` of the
    `n_key` positions."""
    return _distance(n_query, n_key, device) >= 0


def banded_mask(
    n_query: int, n_key: int, window: int, device: torch.device | None = None
) -> Bool[Tensor, "{n_query} {n_key}"]:
    """Return (n_query, n_key): position i sees the `window` last ones, j in (i - window, i], itself
    included.

    The local layers of GPT-Neo, after the locally banded ones of GPT-3 (Brown et al. 2020, section
    2.1).
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
    """Return the masks of dense layers and of locally banded ones, broadcastable to (batch, n_head,
    n_query, n_key).

    `allowed` says where a row may attend at all, None being everywhere. The first result is None
    for plain causal attention, which the fused kernel does without a mask; the second where
    `window` is 0, so that no layer is local.
    """

    def both(mask: Bool[Tensor, "query key"]) -> Bool[Tensor, "#batch 1 query key"]:
        return mask[None, None] if allowed is None else mask & allowed

    plain = allowed is None and n_query in (1, n_key)
    dense = None if plain else both(causal_mask(n_query, n_key, device))
    return dense, both(banded_mask(n_query, n_key, window, device)) if window else None


def document_mask(starts: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 seq seq"]:
    """Return which positions lie in one document, given `document_starts`; broadcasts over
    heads."""
    return (starts[:, :, None] == starts[:, None, :])[:, None]


def branch_mask(branches: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 seq seq"]:
    """Return which positions lie in one branch, or see the trunk, which is branch 0; broadcasts
    over heads."""
    return ((branches[:, :, None] == branches[:, None, :]) | (branches[:, None, :] == 0))[:, None]


def padding_mask(
    padding: Int[Tensor, " batch"], n_query: int, n_key: int
) -> Bool[Tensor, "batch 1 {n_query} {n_key}"]:
    """Return (batch, 1, n_query, n_key): False on the `padding` first keys of each row, except for
    themselves.

    A padded position sees itself, because a softmax over nothing is NaN, and NaN times a weight of
    zero is NaN.
    """
    is_real = torch.arange(n_key, device=padding.device) >= padding[:, None]
    return is_real[:, None, None, :] | (_distance(n_query, n_key, padding.device) == 0)


def document_starts(segments: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Return for each position the index of its document's first; a document ends where the segment
    id changes."""
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
