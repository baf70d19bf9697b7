"""PPO: a policy learns to give answers with high scores while staying near its reference (Ouyang et
al. 2022, section 3.5, equation 2; Schulman et al. 2017).

One iteration, which is one step of the training loop:

1. `rollout`: sample answers.
2. `experience`: score them, subtract the KL divergence from the reference from the reward of every
   token, and estimate advantages with the value function.
3. `update`: take a few clipped steps of policy and value.

With `align.ptx`, each update also contains the gradient of the pretraining loss (PPO-ptx).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from seq2chat.alignment.advantage import gae, token_rewards, whiten
from seq2chat.alignment.judges import RewardScorer
from seq2chat.alignment.kl import AdaptiveKL, k1
from seq2chat.alignment.objectives import policy_loss, value_loss
from seq2chat.alignment.pretraining import make_mix
from seq2chat.alignment.reinforcement import Experience, ReinforcementLearning
from seq2chat.alignment.rollout import Rollout, answer_logp, ended_scores
from seq2chat.config import OptimConfig, PPOConfig, Recipe
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import frozen_copy, merged
from seq2chat.models.reward import RewardModel, reward_model_from
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.optim import make_optimizers
from seq2chat.training.parallel import Parallel
from seq2chat.training.types import Job, Update

HORIZONS = 20  # per run: β can change by a factor of e^4 (the error is clipped to 0.2)
LEARNING_RATES = ("matrix_lr", "embedding_lr", "head_lr", "vector_lr")
TIMED_RUN_STEPS = 100  # assumed for the horizon if the length of the run is a time


@dataclass(frozen=True)
class PPOExperience(Experience):
    """Experience with values, rewards, advantages and returns at the tokens of the answers, (batch,
    seq) each."""

    values: Float[Tensor, "batch seq"]
    rewards: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, "batch seq"]
    returns: Float[Tensor, "batch seq"]


class Coefficient(nn.Module):
    """The weight β of the KL divergence, as a module so that a checkpoint stores it."""

    beta: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))

    def follow(self, kl: float, n: int, target: float, horizon: float) -> None:
        """Adapt β so that the KL per answer approaches `target` nats; see `AdaptiveKL`."""
        self.beta.fill_(AdaptiveKL(self.beta.item(), target, horizon).update(kl, n).beta)


class PPO(ReinforcementLearning):
    """Proximal policy optimization on the prompts of `data.corpus`."""

    def __init__(
        self,
        recipe: Recipe,
        policy: GPT,
        tokenizer: TextTokenizer,
        log: Log,
        status: Log,
    ) -> None:
        super().__init__(recipe, policy, tokenizer, log, status)
        # The value function starts from the reward model if there is one.
        self.value = (
            copy.deepcopy(self.scorer.model).requires_grad_(True)
            if isinstance(self.scorer, RewardScorer)
            else reward_model_from(merged(policy))
        )
        self.average = frozen_copy(policy) if self.align.ema else None
        self.coefficient = Coefficient(self.align.beta)
        log(
            f"an answer without an end scores {-self.align.missing_eos:.2f} (align.missing_eos); "
            f"values move by at most {self.align.value_clip:.2f} per iteration (align.value_clip)"
        )
        self.mix = make_mix(recipe, tokenizer, policy.context, status)
        if self.mix is not None:
            self.origin = self.mix.fingerprint

    @property
    def align(self) -> PPOConfig:
        assert isinstance(self.recipe.align, PPOConfig)
        return self.recipe.align

    def result(self) -> GPT:
        """Return the average of the weights if there is one (Ouyang et al. 2022, appendix C.4)."""
        return self.average or self.policy

    def modules(self) -> Mapping[str, nn.Module]:
        modules: dict[str, nn.Module] = {
            "policy": self.policy,
            "value": self.value,
            "coefficient": self.coefficient,
        }
        if self.average is not None:
            modules["average"] = self.average
        return modules

    def optimizers(self, config: OptimConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
        # Adam's second moments of such small updates need float32.
        self.policy_optimizers = make_optimizers(self.policy, config, torch.float32)
        rates = {name: getattr(config, name) * self.align.value_lr for name in LEARNING_RATES}
        config = replace(config, **rates)
        self.value_optimizers = make_optimizers(self.value, config, torch.float32)
        return [*self.policy_optimizers, *self.value_optimizers]

    def divide(self, parallel: Parallel, dtype: torch.dtype) -> None:
        super().divide(parallel, dtype)
        parallel.divide(self.value, dtype)
        if self.average is not None and not self.align.lora_rank:
            parallel.divide(self.average, dtype)

    def step(self, job: Job) -> Update:
        self.value.eval()
        update = super().step(job)
        align = self.align
        if align.kl_target:
            n_steps = job.total_steps() or TIMED_RUN_STEPS
            horizon = n_steps * align.episodes / HORIZONS
            kl = update.metrics["kl"]
            self.coefficient.follow(kl, align.episodes, align.kl_target, horizon)
        return update

    @torch.no_grad()
    def experience(self, rollout: Rollout) -> PPOExperience:
        """Return scores, KL penalties, values and advantages of the rollout.

        The policy's log probabilities are computed in the minibatches of the first update, so that
        its ratio is exactly 1.
        """
        align = self.align
        score = ended_scores(rollout, self.scores(rollout), align.missing_eos)

        def logp_of(model: GPT) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda tokens, mask: answer_logp(model, tokens, mask, align.temperature).detach()

        with torch.enable_grad():  # so that the kernels are the ones of the update
            logp = self._per_minibatch(rollout, logp_of(self.policy))
        ref_logp = self._per_minibatch(rollout, logp_of(self.reference))
        values = self._per_minibatch(rollout, lambda t, m: expected_return(self.value, t, m))
        beta = self.coefficient.beta.item()
        rewards = token_rewards(score, k1(logp, ref_logp), rollout.mask, beta)
        advantages, returns = gae(rewards, values, rollout.mask, 1.0, align.gae_lambda)
        return PPOExperience(
            rollout=rollout,
            score=score,
            logp=logp,
            ref_logp=ref_logp,
            values=values,
            rewards=rewards,
            advantages=whiten(advantages, rollout.mask),
            returns=returns,
        )

    def _per_minibatch(
        self, rollout: Rollout, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "batch seq"]:
        """Return the results of `function(tokens, mask)` on each minibatch, without the columns
        after its longest answer, as one tensor."""
        size = self.recipe.train.batch_size
        width = rollout.tokens.shape[1]
        parts = []
        for first in range(0, len(rollout), size):
            tokens, mask = trim(
                rollout.tokens[first : first + size], rollout.mask[first : first + size]
            )
            own = self.parallel.rows
            part = self.parallel.join(function(tokens[own], mask[own]))
            parts.append(nn.functional.pad(part, (0, width - part.shape[1])))
        return torch.cat(parts)

    def update(self, job: Job, experience: PPOExperience) -> list[dict[str, float]]:
        """Update policy and value on each minibatch, `inner_epochs` times."""
        size = self.recipe.train.batch_size
        n = len(experience.rollout)
        first_update = job.progress.step * self.align.inner_epochs * -(-self.align.episodes // size)
        updates: list[dict[str, float]] = []
        for epoch in range(self.align.inner_epochs):
            # The first epoch keeps the order in which the log probabilities were computed.
            rng = torch.Generator().manual_seed(job.progress.samples + epoch)
            order = torch.randperm(n, generator=rng) if epoch else torch.arange(n)
            for rows in order.split(size):
                number = first_update + len(updates)
                updates.append(self._update_minibatch(job, experience, rows, number))
        return updates

    def _update_minibatch(
        self, job: Job, experience: PPOExperience, rows: Int64[Tensor, " n"], number: int
    ) -> dict[str, float]:
        align = self.align
        rollout = experience.rollout
        tokens, mask = trim(rollout.tokens[rows], rollout.mask[rows])
        width = tokens.shape[1]
        own = self.parallel.rows
        rows = rows[own]
        tokens = tokens[own]
        mask = mask[own]
        logp = answer_logp(self.policy, tokens, mask, align.temperature)
        old_logp = experience.logp[rows, :width]
        advantages = experience.advantages[rows, :width]
        loss, n, measured = policy_loss(logp, old_logp, advantages, mask, align.clip)
        loss.backward()
        measured = self.parallel.mean(measured, n)
        metrics = {name: value.item() for name, value in measured.items()}
        loss_sum, n = self.parallel.total(loss, n)
        if self.mix is not None:
            metrics["ptx_loss"], _ = self.mix.add_gradient(job, self.policy, number, n)
        mean, norm = job.apply_gradients(self.policy_optimizers, loss_sum, n)
        metrics |= {"policy_loss": mean, "grad_norm": norm}

        values = expected_return(self.value, tokens, mask)
        old_values = experience.values[rows, :width]
        returns = experience.returns[rows, :width]
        loss, n, measured = value_loss(values, old_values, returns, mask, align.value_clip)
        loss.backward()
        measured["explained_variance"] = measured["explained_variance"].nan_to_num(0.0)
        measured = self.parallel.mean(measured, n)
        loss_sum, n = self.parallel.total(loss, n)
        mean, norm = job.apply_gradients(self.value_optimizers, loss_sum, n)
        metrics |= {"value_loss": mean, "value_grad_norm": norm}
        metrics["explained_variance"] = measured["explained_variance"].item()
        metrics["value_clip_fraction"] = measured["clip_fraction"].item()
        if self.average is not None:
            update_average(self.average, self.policy, align.ema)
        return metrics

    def experience_metrics(self, experience: PPOExperience) -> dict[str, float]:
        beta = self.coefficient.beta.item()
        mask = experience.rollout.mask
        # Nats per answer, without padding.
        kl = k1(experience.logp, experience.ref_logp).where(mask, 0).sum(1)
        reward = experience.rewards.sum(1)
        gap = reward - (experience.score - beta * kl)  # 0 but for rounding
        return super().experience_metrics(experience) | {
            "kl": kl.mean().item(),
            "beta": beta,
            "reward": reward.mean().item(),
            "reward_gap": gap.abs().max().item(),
        }


def expected_return(
    value: RewardModel, tokens: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return the value function's expectation before each token of the answers is chosen, 0
    elsewhere."""
    before = value(tokens[:, :-1]).float()
    return torch.cat([torch.zeros_like(before[:, :1]), before], dim=1).where(mask, 0)


@torch.no_grad()
def update_average(average: GPT, policy: GPT, decay: float) -> None:
    """Move the exponential moving average of the weights toward the policy."""
    for mean, weight in zip(average.parameters(), policy.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def trim(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return both without the columns after the longest answer of these rows."""
    width = int(mask.any(0).nonzero().max()) + 1
    return tokens[:, :width], mask[:, :width]
