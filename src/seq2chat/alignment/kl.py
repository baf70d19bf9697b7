"""Estimates of KL(policy ‖ reference) in nats, and the coefficient that keeps it near a target."""

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor


def k1(logp: Float[Tensor, "*shape"], ref_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return log π - log π_ref of each sampled token (Schulman 2020, "Approximating KL divergence",
    k1). The estimate is unbiased, but noisy: single values are often negative."""
    return logp - ref_logp


def k3(logp: Float[Tensor, "*shape"], ref_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ρ - 1 - log ρ with ρ = π_ref/π of each sampled token (Schulman 2020, "Approximating KL
    divergence", k3). The estimate is unbiased, never negative, and less noisy than `k1` while the
    policies are close."""
    log_ratio = ref_logp - logp
    return log_ratio.expm1() - log_ratio


def best_of_n_kl(n: int) -> float:
    """Return the KL in nats between the best of `n` samples and one sample, log n - (n - 1)/n
    (Stiennon et al. 2020, appendix G.3). It is an upper bound if scores can tie."""
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class AdaptiveKL:
    """A KL coefficient `beta` that adapts until the KL per answer is `target` nats (Ziegler et al.
    2019, section 2.2).

    `horizon` is the number of episodes after which `beta` has changed by about the relative error.
    """

    beta: float
    target: float
    horizon: float = 10_000.0

    def update(self, kl: float, n: int) -> "AdaptiveKL":
        """Return the coefficient after `n` episodes whose mean KL was `kl` nats."""
        # With the arguments in this order, a NaN is not clipped to a large error.
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * n / self.horizon))
