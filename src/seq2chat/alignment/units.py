"""Coefficients in the units of a judge's scores, which differ from one reward model or program to
the next."""

import dataclasses
from collections.abc import Sequence

import torch

from seq2chat.alignment.rollout import Scorer, roll_out
from seq2chat.config import Recipe
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.conversations import Query

LOW = 0.05  # quantile of the scores below which an answer is a bad one


@torch.no_grad()
def in_score_units(
    recipe: Recipe, policy: GPT, tokenizer: ByteBPE, queries: Sequence[Query], scorer: Scorer
) -> Recipe:
    """Return the recipe with `align.missing_eos` and `align.value_clip` set where they are 0.

    Answers of the starting policy to these prompts are scored. An answer that does not end is then
    worth a deviation less than a bad one, so that ending never costs reward; and values may move by
    two deviations in an iteration.
    """
    align = recipe.align
    derives_clip = align.method == "ppo" and not align.value_clip
    if align.missing_eos and not derives_clip:
        return recipe
    rollout = roll_out(policy, tokenizer, queries, align.max_tokens, align.temperature, seed=0)
    scores = scorer(rollout).float()
    # Equal scores have no unit of their own; 1 is that of rewards from 0 to 1.
    deviation = scores.std(correction=0).item() or 1.0
    missing_eos = align.missing_eos or deviation - scores.quantile(LOW).item()
    value_clip = 2 * deviation if derives_clip else align.value_clip
    align = dataclasses.replace(align, missing_eos=missing_eos, value_clip=value_clip)
    return dataclasses.replace(recipe, align=align)
