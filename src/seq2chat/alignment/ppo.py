"""PPO: a policy learns to give answers that score well, and to stay near where it began (Ouyang et
al. 2022, section 3.5, equation 2; Schulman et al. 2017).

One iteration, which is one step of the training loop: sample answers; score them; take the KL
divergence from the reference out of every token's reward; estimate advantages with the value
function; then a few clipped updates of policy and value. With `ptx`, each update's gradient holds
that of the pretraining loss as well, in the same buffer and so in the same optimizer step
(PPO-ptx).
"""

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from seq2chat.alignment.advantage import gae, masked_mean, token_rewards, whiten
from seq2chat.alignment.kl import AdaptiveKL, k1
from seq2chat.alignment.lora import merged
from seq2chat.alignment.objectives import policy_loss, value_loss
from seq2chat.alignment.policy import ExampleLoader, fingerprint, split_examples, that_fit
from seq2chat.alignment.pretraining import add_pretraining, pretraining_text
from seq2chat.alignment.reward_function import FunctionScorer, wanted_columns
from seq2chat.alignment.rollout import Rollout, Scorer, answer_logp, ended_scores, roll_out
from seq2chat.alignment.sft import SHOWN, show_answers, with_shape
from seq2chat.alignment.units import in_score_units
from seq2chat.config import Recipe
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel, reward_model_from
from seq2chat.text.batch import Batch, Loader
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import prompt_ids
from seq2chat.text.conversations import Query, read_queries
from seq2chat.training.loop import Job, Update, apply_gradients, total_steps
from seq2chat.training.objective import causal_lm
from seq2chat.training.optim import make_optimizers
from seq2chat.training.stop import interruptible
from seq2chat.training.tasks import Say, Task

JUDGED = 128  # held-out prompts whose answers are scored at each validation
RESPONSES = 20  # horizons in a run: β can change by a factor of e^4 over it (error clipped to 0.2)
UNKNOWN_STEPS = 100  # of a run whose length is a time
HELD_OUT = 256  # prompts that are never trained on, unless data.val_fraction is fewer


@dataclass(frozen=True)
class Experience:
    """A rollout with all that its updates need: log probabilities of policy and reference, values,
    advantages and returns, (batch, seq) each, at the answers' tokens."""

    rollout: Rollout
    score: Float[Tensor, " batch"]
    logp: Float[Tensor, "batch seq"]
    ref_logp: Float[Tensor, "batch seq"]
    values: Float[Tensor, "batch seq"]
    rewards: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, "batch seq"]
    returns: Float[Tensor, "batch seq"]


class Coefficient(nn.Module):
    """β, the weight of the KL divergence, where a checkpoint can keep it."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))

    def follow(self, kl: float, n: int, target: float, horizon: float) -> None:
        """Move β so that the KL of an answer comes nearer to `target` nats; see `AdaptiveKL`."""
        self.beta.fill_(AdaptiveKL(self.beta.item(), target, horizon).update(kl, n).beta)


@dataclass
class Actors:
    """The models of PPO: the policy is trained to score, `value` to foresee it, `reference` is the
    policy as it began, and `average` the exponential average of its weights, if one is kept."""

    policy: GPT
    value: RewardModel
    reference: GPT
    average: GPT | None
    coefficient: Coefficient

    @property
    def result(self) -> GPT:
        """The policy that is kept: the average of its weights where there is one (Ouyang et al.
        2022, appendix C.4)."""
        return self.average or self.policy

    def modules(self) -> dict[str, nn.Module]:
        several: dict[str, nn.Module] = {
            "policy": self.policy,
            "value": self.value,
            "coefficient": self.coefficient,
        }
        return several | ({} if self.average is None else {"average": self.average})


def make_ppo(
    recipe: Recipe,
    policy: GPT,
    tokenizer: ByteBPE,
    scorer: Scorer,
    judge: RewardModel | None,
    say: Say,
    doing: Say,
) -> tuple[Recipe, Task]:
    """Return the task of answering the prompts of `recipe.data.corpus` so that `scorer` likes the
    answers.

    The value function begins as the reward model `judge` where there is one, else as the policy
    with a fresh head.
    """
    align = recipe.align
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    average = copy.deepcopy(reference) if align.ema else None
    value = (
        reward_model_from(merged(policy))
        if judge is None
        else judge.to(policy.device).requires_grad_(True)
    )
    actors = Actors(policy, value, reference, average, Coefficient(align.beta))
    held_out, loader = deal_queries(recipe, tokenizer, policy.context, scorer, say)
    recipe = in_score_units(recipe, reference, tokenizer, held_out[:JUDGED], scorer)
    align = recipe.align
    say(
        f"an answer that does not end is worth {-align.missing_eos:.2f}; values move by at most "
        f"{align.value_clip:.2f}"
    )
    ptx = pretraining_text(recipe, tokenizer, policy.context, doing)
    optimizers = [make_optimizers(model, recipe.optim, torch.float32) for model in (policy, value)]
    shown = [query.prompt for query in held_out[:SHOWN]]
    task = Task(
        causal_lm,
        None,
        loader,
        lambda limit: (),
        0,
        partial(show_answers, tokenizer=tokenizer, prompts=shown, max_tokens=align.max_tokens),
        step=lambda job: iteration(job, actors, tokenizer, scorer, ptx, len(optimizers[0])),
        shown=("score", "kl"),
        report=partial(
            judge_answers,
            tokenizer=tokenizer,
            queries=held_out[:JUDGED],
            scorer=scorer,
            reference=reference,
            max_tokens=align.max_tokens,
            temperature=align.temperature,
            missing_eos=align.missing_eos,
        ),
        publish=lambda: actors.result,
        modules=actors.modules(),
        optimizers=[o for both in optimizers for o in both],
        origin="" if ptx is None else ptx.fingerprint,
    )
    return with_shape(recipe, policy), task


def deal_queries(
    recipe: Recipe, tokenizer: ByteBPE, context: int, scorer: Scorer, say: Say
) -> tuple[list[Query], ExampleLoader]:
    """Return the prompts that are held out, and a loader that deals the others, with the columns
    that `scorer` takes.

    Equal prompts with equal columns are dealt once.
    """
    align = recipe.align
    columns = wanted_columns(scorer)
    read = read_queries(
        recipe.data.corpus, align.examples, recipe.train.seed, say, align.strict, columns
    )
    if isinstance(scorer, FunctionScorer):
        scorer.check_columns(read, recipe.data.corpus)
    distinct = list(dict.fromkeys(read))
    if len(distinct) < len(read):
        say(f"{len(read) - len(distinct):,} of {len(read):,} prompts are repeated, and dealt once.")
    ids = {query.prompt: prompt_ids(tokenizer, query.prompt) for query in distinct}
    room = context - align.max_tokens
    what = "prompts (leaving room for an answer)"
    fitting = that_fit(
        distinct, lambda query: len(ids[query.prompt]), room, align.strict, what, say
    )
    queries, held_out = split_examples(fitting, recipe, HELD_OUT)
    say(f"{len(queries):,} prompts to learn on, {len(held_out):,} held out")
    # Where the scorer takes columns, an edited one makes other rewards.
    digested = [
        json.dumps(query.columns, sort_keys=True, default=str).encode()
        for query in queries
        if query.columns
    ]
    loader = ExampleLoader(
        len(queries),
        fingerprint(tokenizer, [ids[query.prompt] for query in queries], digested),
        recipe.train.seed,
        len(queries),
        lambda rows: [queries[i] for i in rows],
        per_step=align.episodes // (align.group if align.method == "grpo" else 1),
    )
    return held_out, loader


def iteration(
    job: Job, actors: Actors, tokenizer: ByteBPE, scorer: Scorer, ptx: Loader | None, split: int
) -> Update:
    """Sample, score and update once; the first `split` of the job's optimizers are the policy's.

    Dropout is off throughout, so that ratios compare policies and not their noise.
    """
    align, progress = job.recipe.align, job.progress
    for model in (actors.policy, actors.value):
        model.eval()
    began = time.perf_counter()
    queries = job.task.loader.batch(progress.samples, align.episodes)
    seed = job.recipe.train.seed * 1_000_003 + progress.samples + align.episodes
    with interruptible():
        rollout = roll_out(
            actors.policy, tokenizer, queries, align.max_tokens, align.temperature, seed=seed
        )
        sampled = time.perf_counter()
        experience = evaluate_rollout(rollout, actors, scorer, job)
        scored = time.perf_counter()
    progress.samples += align.episodes
    updates = list(_updates(job, actors, experience, ptx, split))
    first, mean = (
        updates[0],
        {key: sum(u[key] for u in updates) / len(updates) for key in updates[0]},
    )
    metrics = experience_metrics(experience, actors.coefficient.beta.item()) | mean
    metrics |= {"first_ratio_min": first["ratio_min"], "first_ratio_max": first["ratio_max"]}
    metrics |= {"seconds_rollout": sampled - began, "seconds_score": scored - sampled}
    metrics |= {"seconds_update": time.perf_counter() - scored}
    if align.kl_target:
        horizon = (total_steps(job) or UNKNOWN_STEPS) * align.episodes / RESPONSES
        actors.coefficient.follow(metrics["kl"], align.episodes, align.kl_target, horizon)
    n_tokens = int(rollout.mask.sum())
    flops = 3 * actors.policy.flops(Batch(rollout.tokens, rollout.tokens))
    return Update(metrics["policy_loss"], metrics["grad_norm"], n_tokens, flops, metrics)


@torch.no_grad()
def evaluate_rollout(rollout: Rollout, actors: Actors, scorer: Scorer, job: Job) -> Experience:
    """Return the experience of a rollout: scores, KL penalties, values and advantages.

    The policy's log probabilities are computed in the minibatches of the first update, so that its
    ratio is exactly 1.
    """
    align, size = job.recipe.align, job.recipe.train.batch_size
    score = ended_scores(rollout, scorer(rollout), align.missing_eos)
    parts = [slice(first, first + size) for first in range(0, len(rollout), size)]

    def each(function: Any) -> Tensor:
        return torch.cat(
            [function(*_trim(rollout.tokens[part], rollout.mask[part])) for part in parts]
        )

    width = rollout.tokens.shape[1]
    with torch.enable_grad():  # so that the very kernels of the update compute them
        logp = each(
            lambda t, m: _widen(answer_logp(actors.policy, t, m, align.temperature).detach(), width)
        )
    ref_logp = each(
        lambda t, m: _widen(answer_logp(actors.reference, t, m, align.temperature), width)
    )
    values = each(lambda t, m: _widen(expected(actors.value, t, m), width))
    rewards = token_rewards(score, k1(logp, ref_logp), rollout.mask, actors.coefficient.beta.item())
    advantages, returns = gae(rewards, values, rollout.mask, 1.0, align.gae_lambda)
    return Experience(
        rollout, score, logp, ref_logp, values, rewards, whiten(advantages, rollout.mask), returns
    )


def expected(
    value: RewardModel, tokens: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return at each token of the answers what the value function expects before the token is
    chosen, 0 elsewhere."""
    before = value(tokens[:, :-1]).float()
    return torch.cat([torch.zeros_like(before[:, :1]), before], dim=1).where(mask, 0)


def _updates(
    job: Job, actors: Actors, e: Experience, ptx: Loader | None, split: int
) -> Iterator[dict[str, float]]:
    """Update policy and value on each minibatch, `inner_epochs` times; yields the metrics of each
    update."""
    align, size = job.recipe.align, job.recipe.train.batch_size
    update = job.progress.step * align.inner_epochs * -(-align.episodes // size)
    for epoch in range(align.inner_epochs):
        # The first pass keeps the order in which the log probabilities were computed.
        generator = torch.Generator().manual_seed(job.progress.samples + epoch)
        order = (
            torch.randperm(len(e.rollout), generator=generator)
            if epoch
            else torch.arange(len(e.rollout))
        )
        for rows in order.split(size):
            tokens, mask = _trim(e.rollout.tokens[rows], e.rollout.mask[rows])
            width = tokens.shape[1]
            old, advantages, values, returns = (
                x[rows, :width] for x in (e.logp, e.advantages, e.values, e.returns)
            )
            logp = answer_logp(actors.policy, tokens, mask, align.temperature)
            loss, n, shown = policy_loss(logp, old, advantages, mask, align.clip)
            loss.backward()
            metrics = {name: x.item() for name, x in shown.items()}
            if ptx is not None:
                metrics["ptx_loss"], _ = add_pretraining(job, actors.policy, ptx, update, n)
            mean, norm = apply_gradients(job, job.optimizers[:split], loss.detach(), n)
            metrics |= {"policy_loss": mean, "grad_norm": norm}
            loss, n, shown = value_loss(
                expected(actors.value, tokens, mask), values, returns, mask, align.value_clip
            )
            loss.backward()
            mean, norm = apply_gradients(job, job.optimizers[split:], loss.detach(), n)
            metrics |= {"value_loss": mean, "value_grad_norm": norm}
            metrics["explained_variance"] = shown["explained_variance"].nan_to_num(0.0).item()
            metrics["value_clip_fraction"] = shown["clip_fraction"].item()
            if actors.average is not None:
                _average(actors.average, actors.policy, align.ema)
            update += 1
            yield metrics


@torch.no_grad()
def _average(average: GPT, policy: GPT, decay: float) -> None:
    """Move the average a little towards the policy."""
    for mean, weight in zip(average.parameters(), policy.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def _trim(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the columns behind the longest answer of these rows."""
    width = int(mask.any(0).nonzero().max()) + 1
    return tokens[:, :width], mask[:, :width]


def _widen(x: Tensor, width: int) -> Tensor:
    return nn.functional.pad(x, (0, width - x.shape[1]))


def experience_metrics(e: Experience, beta: float) -> dict[str, float]:
    """Return what an iteration is judged by. KL is in nats an answer, and never includes
    padding."""
    mask, rollout = e.rollout.mask, e.rollout
    kl = k1(e.logp, e.ref_logp).where(mask, 0).sum(1)
    return {
        "score": e.score.mean().item(),
        "kl": kl.mean().item(),
        "beta": beta,
        "reward": e.rewards.sum(1).mean().item(),
        "reward_gap": (e.rewards.sum(1) - (e.score - beta * kl)).abs().max().item(),
        "entropy": -masked_mean(e.logp, mask).item(),
        "sampling_gap": (e.logp - e.rollout.sampled_logp).where(mask, 0).abs().max().item(),
        "answer_tokens": rollout.lengths.float().mean().item(),
        "finished": rollout.finished.float().mean().item(),
    }


@torch.no_grad()
def judge_answers(
    policy: GPT,
    limit: int,
    tokenizer: ByteBPE,
    queries: list[Query],
    scorer: Scorer,
    reference: GPT,
    max_tokens: int,
    temperature: float,
    missing_eos: float,
) -> dict[str, float]:
    """Return score, KL from the reference (nats an answer) and length of answers to held-out
    prompts, sampled with the same random numbers each time."""
    policy.eval()
    rollout = roll_out(policy, tokenizer, queries, max_tokens, temperature, seed=0)
    gap = answer_logp(policy, rollout.tokens, rollout.mask, temperature) - answer_logp(
        reference, rollout.tokens, rollout.mask, temperature
    )
    return {
        "score": ended_scores(rollout, scorer(rollout), missing_eos).mean().item(),
        "kl": gap.sum(1).mean().item(),
        "answer_tokens": rollout.lengths.float().mean().item(),
        "finished": rollout.finished.float().mean().item(),
    }
