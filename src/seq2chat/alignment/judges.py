"""Scorers of answers: a reward model, the user's function, or the oracle of the built-in world."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.alignment.reward import scores_at
from seq2chat.alignment.reward_function import FunctionScorer, load_function
from seq2chat.alignment.rollout import Rollout, Scorer, last_token
from seq2chat.config import Recipe, UserError, check
from seq2chat.models.reward import RewardModel
from seq2chat.text.conversations import TRAINING, WORLD, Columns, Prompt, Query, world_questions
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.world import gold
from seq2chat.training.checkpoint import load_checkpoint

SCORED_AT_ONCE = 256  # rows of a rollout


class RewardScorer:
    """Scores answers with a reward model, read at the last token of each answer."""

    columns: Columns = frozenset()

    def __init__(self, model: RewardModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def check_columns(self, queries: Sequence[Query], source: str) -> None:
        """A reward model needs no columns."""

    @torch.no_grad()
    def __call__(self, rollout: Rollout) -> Float[Tensor, " batch"]:
        parts = zip(
            rollout.tokens.split(SCORED_AT_ONCE),
            last_token(rollout.mask).split(SCORED_AT_ONCE),
            strict=True,
        )
        return torch.cat([scores_at(self.model, tokens, last).float() for tokens, last in parts])


def scorer_of(recipe: Recipe, tokenizer: TextTokenizer, device: torch.device) -> Scorer:
    """Return the scorer that `align.reward` names. Errors are those of `load_scorer`."""
    align: Any = recipe.align
    n = align.examples or TRAINING
    return load_scorer(align.reward, tokenizer, device, n, recipe.train.seed)


def load_scorer(
    source: str, tokenizer: TextTokenizer, device: torch.device, n: int, seed: int
) -> Scorer:
    """Return the scorer named by `source`: the run or folder of a reward model, a function as
    `FILE.py:FUNCTION`, or `oracle`, the gold score of the world's first `n` questions.

    Raises UserError for a reward model with another tokenizer, and for a missing file or function.
    """
    check(
        source != "",
        "No reward: name a reward model's run, FILE.py:FUNCTION or oracle with --reward.",
    )
    if source == "oracle":
        return oracle_scorer(n, seed)
    if ".py:" in source:
        return FunctionScorer(load_function(source), source)
    check(
        not source.endswith(".py"),
        f"{source} is a file; name its function too, for example {source}:reward.",
    )
    model, its_tokenizer = load_checkpoint(Path(source))
    if not isinstance(model, RewardModel):
        raise UserError(
            f"{source} is a {model.config.family}, which gives no scores; train a reward model from"
            f" it: seq2chat reward --start {source}."
        )
    check(
        its_tokenizer.fingerprint == tokenizer.fingerprint,
        f"The reward model {source} has another tokenizer than the policy; train one from the same "
        "start.",
    )
    return RewardScorer(model.to(device))


def oracle_scorer(n: int, seed: int) -> FunctionScorer:
    """Return the scorer that gives answers to the world's first `n` training questions their gold
    score."""
    return FunctionScorer(oracle(n, seed), "oracle")


def oracle(n: int, seed: int) -> Callable[[list[Prompt], list[str]], list[float]]:
    """Return the function `(prompts, answers) -> gold scores` for the world's first `n` training
    questions."""
    questions = {question.messages: question for question in world_questions(n, seed)}

    def score(prompts: list[Prompt], answers: list[str]) -> list[float]:
        check(
            all(prompt in questions for prompt in prompts),
            f"The oracle can only score answers to the questions of {WORLD}; name another reward.",
        )
        pairs = zip(prompts, answers, strict=True)
        return [gold(questions[prompt], answer).score for prompt, answer in pairs]

    return score
