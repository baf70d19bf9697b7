"""Coefficients in units of the scores, which differ between reward models and programs."""

from collections.abc import Sequence
from typing import Any

import torch

from seq2chat.alignment.rollout import Scorer, roll_out
from seq2chat.config import PPOConfig, Recipe
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.conversations import Query

LOW = 0.05  # an answer with a score below this quantile is a bad one


@torch.no_grad()
def with_score_units(
    recipe: Recipe,
    policy: GPT,
    tokenizer: ByteBPE,
    queries: Sequence[Query],
    scorer: Scorer,
) -> Recipe:
    """Return the recipe with `align.missing_eos` and `align.value_clip` derived where they are 0.

    Answers of the starting policy are scored. An answer that does not end then scores one standard
    deviation less than a bad one, so that ending never costs reward. Values may move by two
    standard deviations per iteration.
    """
    align: Any = recipe.align
    derives_clip = isinstance(align, PPOConfig) and not align.value_clip
    if align.missing_eos and not derives_clip:
        return recipe
    temperature = getattr(align, "temperature", 1.0)
    rollout = roll_out(policy, tokenizer, queries, align.max_tokens, temperature, seed=0)
    scores = scorer(rollout).float()
    # Equal scores have no unit of their own; 1 suits rewards between 0 and 1.
    deviation = scores.std(correction=0).item() or 1.0
    derived: dict[str, float] = {}
    if not align.missing_eos:
        derived["missing_eos"] = deviation - scores.quantile(LOW).item()
    if derives_clip:
        derived["value_clip"] = 2 * deviation
    return recipe.with_options("align", **derived)
