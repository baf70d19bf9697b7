"""GRPO: an answer is compared with others to the same prompt, so that no value function is needed
(Shao et al. 2024, section 4.1)."""

import copy
import time
from functools import partial

import torch
from torch import Tensor

from seq2chat.alignment.advantage import masked_mean
from seq2chat.alignment.kl import k3
from seq2chat.alignment.objectives import group_advantages, grpo_loss
from seq2chat.alignment.ppo import JUDGED, deal_queries, judge_answers
from seq2chat.alignment.rollout import Scorer, answer_logp, ended_scores, roll_out
from seq2chat.alignment.sft import SHOWN, show_answers, with_shape
from seq2chat.alignment.units import in_score_units
from seq2chat.config import Recipe
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import Batch
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.training.loop import Job, Update, apply_gradients
from seq2chat.training.objective import causal_lm
from seq2chat.training.stop import interruptible
from seq2chat.training.tasks import Say, Task


def make_grpo(
    recipe: Recipe, policy: GPT, tokenizer: ByteBPE, scorer: Scorer, say: Say
) -> tuple[Recipe, Task]:
    """Return the task of answering the prompts of `recipe.data.corpus` better than the policy's own
    other answers."""
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    held_out, loader = deal_queries(recipe, tokenizer, policy.context, scorer, say)
    recipe = in_score_units(recipe, reference, tokenizer, held_out[:JUDGED], scorer)
    align = recipe.align
    say(f"an answer that does not end is worth {-align.missing_eos:.2f}")
    shown = [query.prompt for query in held_out[:SHOWN]]
    task = Task(
        causal_lm,
        None,
        loader,
        lambda limit: (),
        0,
        partial(show_answers, tokenizer=tokenizer, prompts=shown, max_tokens=align.max_tokens),
        step=lambda job: iteration(job, policy, reference, tokenizer, scorer),
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
    )
    return with_shape(recipe, policy), task


def iteration(job: Job, policy: GPT, reference: GPT, tokenizer: ByteBPE, scorer: Scorer) -> Update:
    """Sample a group of answers to each prompt, score them, and update on them."""
    align, progress = job.recipe.align, job.progress
    policy.eval()  # without dropout, ratios compare policies and not their noise
    began = time.perf_counter()
    n_prompts = align.episodes // align.group
    queries = job.task.loader.batch(progress.samples, n_prompts)
    seed = job.recipe.train.seed * 1_000_003 + progress.samples + n_prompts
    with torch.no_grad(), interruptible():
        rollout = roll_out(
            policy, tokenizer, queries, align.max_tokens, align.temperature, align.group, seed
        )
        sampled = time.perf_counter()
        score = ended_scores(rollout, scorer(rollout), align.missing_eos)
        groups = score.unflatten(0, (n_prompts, align.group))
        advantages = group_advantages(groups).flatten()
        parts = torch.arange(len(rollout)).split(job.recipe.train.batch_size)

        def each(model: GPT) -> Tensor:
            rows = (
                answer_logp(model, rollout.tokens[p], rollout.mask[p], align.temperature)
                for p in parts
            )
            return torch.cat([row.detach() for row in rows])

        fixed = each(reference)
        with torch.enable_grad():  # so that the very kernels of the update compute them
            old = each(policy)
    scored = time.perf_counter()
    progress.samples += n_prompts
    updates = []
    for _ in range(align.inner_epochs):
        for rows in parts:
            tokens, mask = rollout.tokens[rows], rollout.mask[rows]
            logp = answer_logp(policy, tokens, mask, align.temperature)
            loss, n, shown = grpo_loss(
                logp, old[rows], fixed[rows], advantages[rows], mask, align.clip, align.beta
            )
            loss.backward()
            mean, norm = apply_gradients(job, job.optimizers, loss.detach(), n)
            shown.pop("kl")
            updates.append(
                {name: x.item() for name, x in shown.items()}
                | {"policy_loss": mean, "grad_norm": norm}
            )
    metrics = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]} | {
        "score": score.mean().item(),
        "kl": k3(old, fixed).where(rollout.mask, 0).sum(1).mean().item(),
        "equal_groups": (groups.std(1) == 0).float().mean().item(),
        "answer_tokens": rollout.lengths.float().mean().item(),
        "finished": rollout.finished.float().mean().item(),
        "entropy": -masked_mean(old, rollout.mask).item(),
        "sampling_gap": (old - rollout.sampled_logp).where(rollout.mask, 0).abs().max().item(),
        "first_ratio_min": updates[0]["ratio_min"],
        "first_ratio_max": updates[0]["ratio_max"],
        "seconds_rollout": sampled - began,
        "seconds_score": scored - sampled,
        "seconds_update": time.perf_counter() - scored,
    }
    flops = 3 * policy.flops(Batch(rollout.tokens, rollout.tokens))
    return Update(
        metrics["policy_loss"], metrics["grad_norm"], int(rollout.mask.sum()), flops, metrics
    )
