"""Answers to held-out prompts: shown as text, or scored."""

from collections.abc import Sequence
from typing import Any

import torch

from seq2chat.alignment.rollout import Scorer, answer_logp, ended_scores, roll_out
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.text.chat import end_tokens, prompt_ids
from seq2chat.text.conversations import Prompt, Query
from seq2chat.text.text_tokenizer import TextTokenizer

SAMPLES = 4  # prompts per sample


def show_answers(
    model: Any, tokenizer: TextTokenizer, prompts: Sequence[Prompt], max_tokens: int
) -> str:
    """Return the prompts with greedy answers of `model`, as text."""
    sampling = SamplingConfig(max_tokens=max_tokens, temperature=0.0)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    ends = end_tokens(tokenizer)
    lines = []
    for prompt, [completion] in zip(prompts, generate(model, ids, sampling, ends), strict=True):
        answer = tokenizer.decode(token for token in completion.tokens if token not in ends)
        lines.append(f"  {prompt[-1].content}\n→ {answer}")
    return "\n".join(lines)


def mean_score(
    model: GPT,
    tokenizer: TextTokenizer,
    queries: Sequence[Query],
    scorer: Scorer,
    max_tokens: int,
    missing_eos: float,
) -> float:
    """Return the mean score of one sampled answer per query, with the same random numbers on each
    call. An answer that does not end scores `-missing_eos`."""
    rollout = roll_out(model, tokenizer, queries, max_tokens, seed=0)
    return ended_scores(rollout, scorer(rollout), missing_eos).mean().item()


@torch.no_grad()
def answer_metrics(
    policy: GPT,
    reference: GPT,
    tokenizer: TextTokenizer,
    queries: Sequence[Query],
    scorer: Scorer,
    align: Any,
) -> dict[str, float]:
    """Return score, KL from the reference (nats per answer) and length of sampled answers, with the
    same random numbers on each call. `align` has the sampling options of PPO or GRPO."""
    policy.eval()
    rollout = roll_out(policy, tokenizer, queries, align.max_tokens, align.temperature, seed=0)
    logp = answer_logp(policy, rollout.tokens, rollout.mask, align.temperature)
    ref_logp = answer_logp(reference, rollout.tokens, rollout.mask, align.temperature)
    return {
        "score": ended_scores(rollout, scorer(rollout), align.missing_eos).mean().item(),
        "kl": (logp - ref_logp).sum(1).mean().item(),
        "answer_tokens": rollout.lengths.float().mean().item(),
        "finished": rollout.finished.float().mean().item(),
    }
