"""Coefficients in units of the scores, which differ between reward models and programs."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from seq2chat.config import PPOConfig, Recipe

LOW = 0.05  # an answer with a score below this quantile is a bad one


def with_score_units(recipe: Recipe, scores: Float[Tensor, " answers"]) -> Recipe:
    """Return the recipe with `align.missing_eos` and `align.value_clip` derived where they are 0,
    from the `scores` of answers of the starting policy.

    An answer that does not end then scores one standard
    deviation less than a bad one, so that ending never costs reward. Values may move by two
    standard deviations per iteration.
    """
    align: Any = recipe.align
    derives_clip = isinstance(align, PPOConfig) and not align.value_clip
    if align.missing_eos and not derives_clip:
        return recipe
    # Equal scores have no unit of their own; 1 suits rewards between 0 and 1.
    deviation = scores.std(correction=0).item() or 1.0
    derived: dict[str, float] = {}
    if not align.missing_eos:
        derived["missing_eos"] = deviation - scores.quantile(LOW).item()
    if derives_clip:
        derived["value_clip"] = 2 * deviation
    return recipe.with_options("align", **derived)
