"""The losses of alignment, as functions of log probabilities, scores and values.

Each returns `(loss_sum, n, metrics)`: the loss to differentiate, the number of elements it is the
sum over, and detached scalars for display. `loss_sum / n` is then the same mean loss for any split
of a batch. Log probabilities are in nats. Masks are True where a token counts. Values outside a
mask have no influence, even NaN and infinity.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seq2chat.alignment.advantage import masked, masked_mean, masked_var
from seq2chat.alignment.kl import k3

Measured = tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]


def ranking_loss(
    scores: Float[Tensor, " n"], ranks: Int[Tensor, " n"], prompts: Int[Tensor, " n"]
) -> Measured:
    """Return the loss of a reward model summed over prompts, and the number of prompts (Ouyang et
    al. 2022, equation 1).

    Answer i belongs to prompt `prompts[i]` and has rank `ranks[i]` (the smallest is the best) and
    score `scores[i]`. The loss of a prompt is the mean over its pairs of -log σ(score of the better
    - score of the worse). Answers of equal rank form no pair. A prompt without pairs is not
    counted.

    Metrics:

    - `accuracy`: the share of pairs whose better answer scores strictly higher
    - `margin`: the mean difference of the scores
    - `pairs`: their number, the weight of both metrics when batches are combined

    For example, a pair with equal scores has the loss log 2:

    >>> loss, n, _ = ranking_loss(torch.zeros(2), torch.tensor([1, 2]), torch.tensor([0, 0]))
    >>> (loss / n).item()
    0.6931471824645996
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    is_pair = (prompts[:, None] == prompts) & (ranks[:, None] < ranks)
    better, worse = is_pair.nonzero(as_tuple=True)
    margin = scores[better] - scores[worse]
    _, element, n_pairs = prompts[better].unique(return_inverse=True, return_counts=True)
    loss_sum = (-F.logsigmoid(margin) / n_pairs[element]).sum()
    metrics = {
        "accuracy": (margin.detach() > 0).to(margin.dtype).mean(),
        "margin": margin.detach().mean(),
        "pairs": better.new_tensor(len(better)),
    }
    return loss_sum, better.new_tensor(len(n_pairs)), metrics


def policy_loss(
    logp: Float[Tensor, "batch seq"],
    old_logp: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    clip: float = 0.2,
) -> Measured:
    """Return the negated clipped surrogate of PPO summed over tokens, and their number (Schulman et
    al. 2017, equation 7).

    Metrics:

    - `clip_fraction`: the share of clipped tokens, whose gradient is 0
    - `ratio_min` and `ratio_max` of π/π_old: exactly 1 before the first update
    - `approx_kl`: the mean k3 estimate of KL(π_old ‖ π)
    """
    losses, metrics = _clipped_surrogate(logp, old_logp, advantages, mask, clip)
    return losses.sum(), mask.sum(), metrics


def value_loss(
    values: Float[Tensor, "batch seq"],
    old_values: Float[Tensor, "batch seq"],
    returns: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    clip: float = 0.2,
) -> Measured:
    """Return half the squared error of the values summed over tokens, and their number.

    The error is the larger one of the value itself and of the value clipped to within `clip` of the
    old value (Ziegler et al. 2019, their code).

    Metrics:

    - `clip_fraction`: the share of clipped tokens
    - `explained_variance`: 1 - var(returns - values) / var(returns). 1 is perfect, 0 is no better
      than a constant, and NaN means that all returns are equal.
    """
    values = masked(values, mask)
    old_values = masked(old_values, mask)
    returns = masked(returns, mask)
    errors = (values - returns).square()
    clipped_errors = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    spread = masked_var(returns, mask)
    unexplained = masked_var(returns - values.detach(), mask)
    metrics = {
        "clip_fraction": _share(clipped_errors > errors, mask),
        "explained_variance": torch.where(spread > 0, 1 - unexplained / spread, torch.nan),
    }
    return 0.5 * torch.maximum(errors, clipped_errors).sum(), mask.sum(), metrics


def dpo_loss(
    chosen_logp: Float[Tensor, " pairs"],
    rejected_logp: Float[Tensor, " pairs"],
    ref_chosen_logp: Float[Tensor, " pairs"],
    ref_rejected_logp: Float[Tensor, " pairs"],
    beta: float,
    label_smoothing: float | Float[Tensor, " pairs"] = 0.0,
) -> Measured:
    """Return the DPO loss summed over pairs, and their number (Rafailov et al. 2023, equation 7).

    Each log probability belongs to a whole answer given its prompt. `label_smoothing` is the
    probability, for all pairs or for each, that the labels are swapped (Mitchell 2023,
    "conservative DPO").

    Metrics, as means over pairs:

    - `chosen_reward` and `rejected_reward`: β · log π/π_ref
    - `margin`: their difference
    - `accuracy`: the share of pairs whose chosen answer has the strictly higher reward, 0 before
      the first update
    - `chosen_logp` and `rejected_logp`, which may both fall while the margin grows
    """
    wide = torch.promote_types(chosen_logp.dtype, torch.float32)
    chosen_logp = chosen_logp.to(wide)
    rejected_logp = rejected_logp.to(wide)
    chosen_reward = beta * (chosen_logp - ref_chosen_logp)
    rejected_reward = beta * (rejected_logp - ref_rejected_logp)
    margin = chosen_reward - rejected_reward
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    metrics = {
        "margin": margin,
        "accuracy": (margin > 0).to(wide),
        "chosen_reward": chosen_reward,
        "rejected_reward": rejected_reward,
        "chosen_logp": chosen_logp,
        "rejected_logp": rejected_logp,
    }
    n = torch.tensor(len(margin), device=margin.device)
    return losses.sum(), n, {name: value.detach().mean() for name, value in metrics.items()}


@torch.no_grad()
def group_advantages(
    rewards: Float[Tensor, "prompts group"], normalize: bool = True, epsilon: float = 1e-4
) -> Float[Tensor, "prompts group"]:
    """Return the difference of each reward from the mean of its group, in units of the group's
    unbiased standard deviation (Shao et al. 2024, section 4.1.2).

    `normalize=False` keeps the units of the reward. That keeps the original objective, which the
    standard deviation reweighs by prompt (Liu et al. 2025, "Dr. GRPO", section 3.1). A group of
    equal rewards has advantages 0.

    >>> group_advantages(torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]]), normalize=False)
    tensor([[-1.,  0.,  1.],
            [ 0.,  0.,  0.]])
    """
    assert rewards.shape[1] > 1, "A group of one answer has nothing to be compared with."
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    centered = rewards - rewards.mean(1, keepdim=True)
    return centered / (rewards.std(1, keepdim=True) + epsilon) if normalize else centered


def grpo_loss(
    logp: Float[Tensor, "batch seq"],
    old_logp: Float[Tensor, "batch seq"],
    ref_logp: Float[Tensor, "batch seq"] | None,
    advantages: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch seq"],
    clip: float = 0.2,
    beta: float = 0.0,
) -> Measured:  # the quantities of its equation
    """Return the negated clipped surrogate plus `beta` · k3 to the reference, summed over tokens,
    and their number (Shao et al. 2024, equation 3).

    Every token has the advantage of its answer. All tokens of the batch have the same weight (Yu et
    al. 2025, "DAPO", equation 8). The mean over each answer first, as in Shao et al., would give
    the tokens of long answers less weight. `ref_logp` may be None if `beta` is 0.

    The metrics are those of `policy_loss`, and with a reference `kl`, the mean k3 estimate of
    KL(π ‖ π_ref).
    """
    assert ref_logp is not None or beta == 0, (
        "A KL penalty needs the log probabilities of a reference."
    )
    token_advantages = advantages[:, None].expand_as(logp)
    losses, metrics = _clipped_surrogate(logp, old_logp, token_advantages, mask, clip)
    loss_sum = losses.sum()
    if ref_logp is not None:
        kl = k3(masked(logp, mask), masked(ref_logp, mask))
        metrics["kl"] = masked_mean(kl.detach(), mask)
        if beta != 0:
            loss_sum = loss_sum + beta * kl.sum()
    return loss_sum, mask.sum(), metrics


def _clipped_surrogate(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of each token, 0 outside the mask, and the metrics."""
    logp = masked(logp, mask)
    old_logp = masked(old_logp, mask)
    advantages = masked(advantages, mask)
    ratio = (logp - old_logp).exp()
    losses = -advantages * ratio
    clipped_losses = -advantages * ratio.clamp(1 - clip, 1 + clip)
    metrics = {
        "clip_fraction": _share(clipped_losses > losses, mask),
        "ratio_min": ratio.detach().masked_fill(~mask, torch.inf).amin(),
        "ratio_max": ratio.detach().masked_fill(~mask, -torch.inf).amax(),
        "approx_kl": masked_mean(k3(old_logp, logp.detach()), mask),
    }
    return torch.maximum(losses, clipped_losses), metrics


def _share(event: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(event.to(torch.float32), mask)
