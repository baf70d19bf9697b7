"""GRPO: an answer is compared with other answers to the same prompt, so no value function is needed
(Shao et al. 2024, section 4.1)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.alignment.kl import k3
from seq2chat.alignment.objectives import group_advantages, grpo_loss
from seq2chat.alignment.reinforcement import Experience, ReinforcementLearning
from seq2chat.alignment.rollout import Rollout, answer_logp, ended_scores
from seq2chat.config import GRPOConfig, Recipe
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.types import Job


@dataclass(frozen=True)
class GroupExperience(Experience):
    """Experience with one advantage per answer, and the share of groups with equal scores, from
    which nothing is learned."""

    advantages: Float[Tensor, " batch"]
    equal_groups: float


class GRPO(ReinforcementLearning):
    """Group relative policy optimization on the prompts of `data.corpus`."""

    def __init__(
        self, recipe: Recipe, policy: GPT, tokenizer: TextTokenizer, log: Log, status: Log
    ) -> None:
        super().__init__(recipe, policy, tokenizer, log, status)
        log(f"an answer without an end scores {-self.align.missing_eos:.2f} (align.missing_eos)")

    @property
    def align(self) -> GRPOConfig:
        assert isinstance(self.recipe.align, GRPOConfig)
        return self.recipe.align

    @torch.no_grad()
    def experience(self, rollout: Rollout) -> GroupExperience:
        """Return scores and advantages of the rollout: scores relative to the group's mean."""
        score = ended_scores(rollout, self.scores(rollout), self.align.missing_eos)
        groups = score.unflatten(0, (self.n_prompts, self.align.group))
        ref_logp = self._logp(self.reference, rollout)
        with torch.enable_grad():  # so that the kernels are the ones of the update
            logp = self._logp(self.policy, rollout)
        return GroupExperience(
            rollout=rollout,
            score=score,
            logp=logp,
            ref_logp=ref_logp,
            advantages=group_advantages(groups).flatten(),
            equal_groups=(groups.std(1) == 0).float().mean().item(),
        )

    def _logp(self, model: GPT, rollout: Rollout) -> Float[Tensor, "batch seq"]:
        """Return the log probabilities of the answers, computed in the minibatches of the
        updates."""
        parts = []
        for rows in torch.arange(len(rollout)).split(self.recipe.train.batch_size):
            own = rows[self.parallel.rows]
            logp = answer_logp(
                model, rollout.tokens[own], rollout.mask[own], self.align.temperature
            )
            parts.append(self.parallel.join(logp.detach()))
        return torch.cat(parts)

    def update(self, job: Job, experience: GroupExperience) -> list[dict[str, float]]:
        """Update the policy on each minibatch, `inner_epochs` times."""
        align = self.align
        rollout = experience.rollout
        minibatches = torch.arange(len(rollout)).split(self.recipe.train.batch_size)
        updates: list[dict[str, float]] = []
        for minibatch in minibatches * align.inner_epochs:
            rows = minibatch[self.parallel.rows]
            mask = rollout.mask[rows]
            loss, n, measured = grpo_loss(
                answer_logp(self.policy, rollout.tokens[rows], mask, align.temperature),
                experience.logp[rows],
                experience.ref_logp[rows],
                experience.advantages[rows],
                mask,
                clip=align.clip,
                beta=align.beta,
            )
            loss.backward()
            measured = self.parallel.mean(measured, n)
            loss_sum, n = self.parallel.total(loss, n)
            mean, norm = job.apply_gradients(job.optimizers, loss_sum, n)
            measured.pop("kl")  # reported per answer instead
            metrics = {name: value.item() for name, value in measured.items()}
            updates.append(metrics | {"policy_loss": mean, "grad_norm": norm})
        return updates

    def experience_metrics(self, experience: GroupExperience) -> dict[str, float]:
        kl = k3(experience.logp, experience.ref_logp).where(experience.rollout.mask, 0)
        return super().experience_metrics(experience) | {
            "kl": kl.sum(1).mean().item(),
            "equal_groups": experience.equal_groups,
        }
