"""How far a policy has moved from its reference: estimates of KL(policy ‖ reference) in nats, and
the coefficient that keeps it near a target."""

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor


def k1(logp: Float[Tensor, "*shape"], ref_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return log π - log π_ref of each token that the policy chose: unbiased, and negative as often
    as noise makes it (Schulman 2020, "Approximating KL divergence", k1)."""
    return logp - ref_logp


def k3(logp: Float[Tensor, "*shape"], ref_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ρ - 1 - log ρ with ρ = π_ref/π of each token that the policy chose: unbiased, never
    negative, and of less variance than `k1` while the two are close (Schulman 2020, "Approximating
    KL divergence", k3)."""
    log_ratio = ref_logp - logp
    return log_ratio.expm1() - log_ratio


def best_of_n_kl(n: int) -> float:
    """Return the KL in nats between the best of `n` samples and one sample, log n - (n - 1)/n
    (Stiennon et al. 2020, appendix G.3); an upper bound if scores can tie."""
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class AdaptiveKL:
    """The KL coefficient `beta`, and how it follows the KL of a whole answer to its `target` in
    nats (Ziegler et al. 2019, section 2.2). `horizon` is the number of episodes after which `beta`
    has changed by about the error."""

    beta: float
    target: float
    horizon: float = 10_000.0

    def update(self, kl: float, n: int) -> "AdaptiveKL":
        """Return the coefficient after `n` episodes whose mean KL was `kl` nats."""
        # In this order of the arguments a KL that is NaN is not mistaken for a large one.
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * n / self.horizon))
