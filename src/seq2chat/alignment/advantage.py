"""Rewards per token, advantages, and masked statistics.

Masks are True where a token counts. Values outside a mask have no influence, even NaN and infinity.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `x` in at least float32, with zeros outside the mask."""
    # Selected rather than multiplied: NaN · 0 is NaN, in the sum and in its gradient.
    return x.to(torch.promote_types(x.dtype, torch.float32)).where(mask, 0)


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean of `x` inside the mask, NaN if the mask is empty."""
    return masked(x, mask).sum() / mask.sum()


def masked_var(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], unbiased: bool = True
) -> Float[Tensor, ""]:
    """Return the variance of `x` inside the mask, 0 for a single value. `unbiased` divides by n - 1
    instead of n."""
    squares = masked(x - masked_mean(x, mask), mask).square().sum()
    return squares / (mask.sum() - int(unbiased)).clamp(min=1)


def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], shift_mean: bool = True
) -> Float[Tensor, "*shape"]:
    """Return `x` scaled to variance 1 (unbiased) inside the mask, and zeros outside.

    The mean is shifted to 0, or kept with `shift_mean=False`. Ziegler et al. (2019, their code)
    whiten advantages in the first way and rewards in the second.
    """
    mean = masked_mean(x, mask)
    whitened = (x - mean) * (masked_var(x, mask) + 1e-8).rsqrt()
    return masked(whitened if shift_mean else whitened + mean, mask)


@torch.no_grad()
def token_rewards(
    score: Float[Tensor, " batch"],
    kl: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    beta: float,
) -> Float[Tensor, "batch seq"]:
    """Return the reward of each token: -`beta` · `kl` (nats), plus the `score` of the answer at its
    last token (Ziegler et al. 2019, equation 2; Ouyang et al. 2022, equation 2).

    Rewards are 0 outside the mask. The rewards of a row add up to score - beta · Σ kl, or to 0 for
    a row without tokens. For example, an answer of two tokens with score 1:

    >>> kl = torch.tensor([[0.5, 0.25, 0.0]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> token_rewards(torch.tensor([1.0]), kl, mask, beta=0.5)
    tensor([[-0.2500,  0.8750,  0.0000]])
    """
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return masked(score[:, None].expand_as(kl), last) - beta * masked(kl, mask)


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "batch seq"],
    values: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Return generalized advantage estimates (Schulman et al. 2015b, equation 16) and returns, the
    targets of the value function. Both are 0 outside the mask.

    `values[:, t]` is the expected return before token t is chosen, and `rewards[:, t]` the reward
    of choosing it. The mask of each row is one contiguous span, and the value after it is 0.
    Returns are advantages + values. With `lam=1`, the returns are the sums of the later rewards:

    >>> rewards = torch.tensor([[0.0, 0.0, 1.0]])
    >>> values = torch.tensor([[0.5, 0.75, 0.25]])
    >>> gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), lam=1.0)
    (tensor([[0.5000, 0.2500, 0.7500]]), tensor([[1., 1., 1.]]))
    """
    rewards = masked(rewards, mask)
    values = masked(values, mask)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values
    advantages = torch.zeros_like(deltas)
    advantage = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        advantage = deltas[:, t] + gamma * lam * advantage
        advantages[:, t] = advantage
    advantages = masked(advantages, mask)
    return advantages, advantages + values
