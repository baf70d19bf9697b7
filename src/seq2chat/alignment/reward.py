"""The reward model: what a reader would think of an answer, learned from answers that readers
ranked (Ouyang et al. 2022, section 3.5); and the other things that can judge an answer."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seq2chat.alignment.objectives import ranking_loss
from seq2chat.alignment.policy import (
    ExampleLoader,
    fingerprint,
    split_examples,
    take_shape,
    that_fit,
)
from seq2chat.alignment.reward_function import FunctionScorer, load_function
from seq2chat.alignment.rollout import Rollout, Scorer, last_token
from seq2chat.config import Recipe, RewardConfig, check
from seq2chat.models.folder import require_family
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel, reward_model_from
from seq2chat.text.batch import IGNORED, Batch, pad_rows
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import answer_ids, written
from seq2chat.text.conversations import WORLD, Comparison, Prompt, read_comparisons, world_questions
from seq2chat.text.world import gold
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.objective import Loss
from seq2chat.training.tasks import Say, Task

SCORED = 256  # rows of a rollout that are scored at once
SHOWN = 3  # held-out prompts whose ranked answers are shown as a sample


@dataclass(frozen=True, kw_only=True)
class ComparisonBatch(Batch):
    """Comparisons row by row: a prompt, then its answers as branches of the row. For each answer in
    turn: the place it was given, the number of its row, the position there at which it is scored,
    its end token's, and its length."""

    branches: Int64[Tensor, "batch seq"]
    ranks: Int64[Tensor, " answers"]
    prompts: Int64[Tensor, " answers"]
    last: Int64[Tensor, " answers"]
    lengths: Int64[Tensor, " answers"]

    def scores(self, model: RewardModel) -> Float[Tensor, " answers"]:
        """Return the score that `model` gives to each answer."""
        return model.branching(self.target, self.branches)[self.prompts, self.last]


def ranking(model: RewardModel, batch: ComparisonBatch) -> Loss:
    """Equation 1 of Ouyang et al. 2022 summed over the batch's prompts, and their number."""
    loss_sum, n, _ = ranking_loss(batch.scores(model), batch.ranks, batch.prompts)
    return loss_sum, n


def comparison_batch(
    forks: Sequence[tuple[list[int], list[list[int]]]], ranks: Sequence[Sequence[int]], pad_id: int
) -> ComparisonBatch:
    """Return the batch of these prompts, each with its answers, as ids.

    Every token that fills up a row is a branch of its own, so that none stands beyond the context.
    """
    lengths = [[len(answer) for answer in answers] for _, answers in forks]
    rows = [prompt + [token for answer in answers for token in answer] for prompt, answers in forks]
    target = pad_rows(rows, pad_id)
    branches = torch.arange(1, target.shape[1] + 1).repeat(len(rows), 1) + max(map(len, lengths))
    for row, (prompt, answers) in enumerate(forks):
        ids = [0] * len(prompt) + [
            number for number, answer in enumerate(answers, start=1) for _ in answer
        ]
        branches[row, : len(ids)] = torch.tensor(ids)
    ends = [
        len(prompt) + end - 1
        for (prompt, _), each in zip(forks, lengths, strict=True)
        for end in accumulate(each)
    ]
    return ComparisonBatch(
        target=target,
        labels=torch.full_like(target, IGNORED),
        branches=branches,
        ranks=torch.tensor([rank for each in ranks for rank in each]),
        prompts=torch.tensor([row for row, each in enumerate(lengths) for _ in each]),
        last=torch.tensor(ends),
        lengths=torch.tensor([length for each in lengths for length in each]),
    )


def scores_at(
    model: RewardModel, tokens: Int64[Tensor, "batch seq"], last: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the score of each row, read at its position `last`; what stands behind it plays no
    part."""
    return model(tokens).gather(1, last[:, None])[:, 0]


def make_reward(
    recipe: Recipe, policy: GPT, tokenizer: ByteBPE, say: Say
) -> tuple[Recipe, RewardModel, Task]:
    """Return the task of learning `recipe.data.corpus`'s rankings, from the weights of `policy`."""
    model = reward_model_from(policy)
    recipe = dataclasses.replace(recipe, model=take_shape(recipe, model.config))
    train, held_out = learned_and_held_out(recipe, tokenizer, model.context, say)
    ids = {c: fork(tokenizer, c) for c in (*train, *held_out)}
    n_pairs = sum(len(c.pairs()) for c in train)
    say(
        f"{len(train):,} prompts with {n_pairs:,} pairs of answers to learn from, {len(held_out):,}"
        " prompts held out"
    )
    assert tokenizer.pad_id is not None
    pad_id = tokenizer.pad_id

    def collate(compared: Sequence[Comparison]) -> ComparisonBatch:
        return comparison_batch([ids[c] for c in compared], [c.ranks for c in compared], pad_id)

    rows = [row for c in train for row in (ids[c][0], *ids[c][1])]
    loader = ExampleLoader(
        len(train),
        fingerprint(tokenizer, rows, [c.ranks for c in train]),
        recipe.train.seed,
        len(train),
        lambda numbers: collate([train[i] for i in numbers]),
    )

    def batches(limit: int = 0) -> Iterator[ComparisonBatch]:
        for first in range(0, len(held_out), recipe.train.batch_size):
            yield collate(held_out[first : first + recipe.train.batch_size])

    best = [c.answers[c.ranks.index(min(c.ranks))] for c in held_out]
    demonstrations = [
        written(tokenizer, c.prompt, answer) for c, answer in zip(held_out, best, strict=True)
    ]
    task = Task(
        ranking,
        ranking,
        loader,
        batches,
        len(held_out),
        lambda model: show_ranking(model, tokenizer, held_out[:SHOWN]),
        unit="prompt",
        report=lambda model, limit: ranking_report(model, batches()),
        publish=lambda: centred(model, demonstrations, pad_id),
        modules={"reward": model},
    )
    return recipe, model, task


def learned_and_held_out(
    recipe: Recipe, tokenizer: ByteBPE, context: int, say: Say
) -> tuple[list[Comparison], list[Comparison]]:
    """Return the comparisons of `recipe.data.corpus` that a reward model learns from, and those
    held out."""
    align = recipe.align
    compared = read_comparisons(
        recipe.data.corpus, align.examples, recipe.train.seed, say, align.strict
    )
    untied = [c for c in compared if len(set(c.ranks)) > 1]
    if len(untied) < len(compared):
        say(
            f"{len(compared) - len(untied):,} of {len(compared):,} prompts have ties alone and are "
            "left out."
        )
    check(bool(untied), f"{recipe.data.corpus} has no two answers of which one was preferred.")
    fitting = that_fit(
        untied, lambda c: longest(*fork(tokenizer, c)), context, align.strict, "comparisons", say
    )
    return split_examples(fitting, recipe)


def fork(tokenizer: ByteBPE, compared: Comparison) -> tuple[list[int], list[list[int]]]:
    """Return the ids of the prompt and those of each answer, with the token that ends it."""
    both = [answer_ids(tokenizer, compared.prompt, answer) for answer in compared.answers]
    return both[0][0], [answer for _, answer in both]


def longest(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    return len(prompt) + max(map(len, answers))


@torch.inference_mode()
def ranking_report(model: RewardModel, batches: Iterator[ComparisonBatch]) -> dict[str, float]:
    """Return the share of held-out pairs that the model orders as the reader did, the mean
    difference of their scores, and how the score goes with length: its correlation with the number
    of the answer's tokens."""
    was_training = model.training
    model.eval()
    right = margin = pairs = 0.0
    scores, lengths = [], []
    for batch in batches:
        batch = batch.to(model.device)
        score = batch.scores(model).float()
        _, _, metrics = ranking_loss(score, batch.ranks, batch.prompts)
        n = metrics["pairs"].item()
        right, margin, pairs = (
            right + metrics["accuracy"].item() * n,
            margin + metrics["margin"].item() * n,
            pairs + n,
        )
        scores.append(score)
        lengths.append(batch.lengths.float())
    model.train(was_training)
    correlation = (
        torch.corrcoef(torch.stack([torch.cat(scores), torch.cat(lengths)]))[0, 1]
        .nan_to_num(0.0)
        .item()
    )
    return {"accuracy": right / pairs, "margin": margin / pairs, "length_correlation": correlation}


def centred(
    model: RewardModel, demonstrations: Sequence[Sequence[int]], pad_id: int
) -> RewardModel:
    """Return the model with the bias that gives these conversations the mean score 0 (Ouyang et al.
    2022, section 3.5)."""
    shifted = copy.copy(model)
    bias = model.config.score_bias - score_rows(model, demonstrations, pad_id).mean().item()
    shifted.config = RewardConfig(**vars(model.config) | {"score_bias": bias})
    return shifted


def show_ranking(model: RewardModel, tokenizer: ByteBPE, compared: Sequence[Comparison]) -> str:
    """Return prompts with their answers, the model's score and the reader's place of each, as
    text."""
    lines = []
    for c in compared:
        scores = score_texts(model, tokenizer, [c.prompt] * len(c.answers), c.answers)
        lines.append(f"  {c.prompt[-1].content}")
        ordered = sorted(zip(c.ranks, scores.tolist(), c.answers, strict=True))
        lines += [f"{score:+6.2f}  place {rank + 1}: {answer}" for rank, score, answer in ordered]
    return "\n".join(lines)


def score_texts(
    model: RewardModel, tokenizer: ByteBPE, prompts: Sequence[Prompt], answers: Sequence[str]
) -> Float[Tensor, " batch"]:
    """Return the score of each answer to its prompt, written out and ended."""
    several = zip(prompts, answers, strict=True)
    return score_rows(
        model,
        [written(tokenizer, prompt, answer) for prompt, answer in several],
        tokenizer.pad_id or 0,
    )


@torch.inference_mode()
def score_rows(
    model: RewardModel, rows: Sequence[Sequence[int]], pad_id: int
) -> Float[Tensor, " batch"]:
    """Return the score of each row at its last token, 64 rows at a time, dropout off."""
    was_training, scores = model.training, []
    model.eval()
    for first in range(0, len(rows), 64):
        part = rows[first : first + 64]
        last = torch.tensor([len(row) - 1 for row in part], device=model.device)
        scores.append(scores_at(model, pad_rows(part, pad_id).to(model.device), last).float())
    model.train(was_training)
    return torch.cat(scores)


# What can judge an answer


def load_scorer(source: str, tokenizer: ByteBPE, device: torch.device, n: int, seed: int) -> Scorer:
    """Return what judges answers: the reward model in a run or folder, the function in
    `FILE.py:FUNCTION`, or `oracle`, the gold score of the world's `n` questions.

    Raises UserError for a model that reads other tokens, and for a file or function that is not
    there.
    """
    check(
        source != "",
        "What judges the answers? Name a reward model's run, FILE.py:FUNCTION or oracle with "
        "--reward.",
    )
    if source == "oracle":
        return FunctionScorer(oracle(n, seed), source)
    if ".py:" in source:
        return FunctionScorer(load_function(source), source)
    model, theirs = load_checkpoint(Path(source))
    require_family(model, "reward")
    assert isinstance(model, RewardModel) and isinstance(theirs, ByteBPE)
    check(
        theirs.fingerprint == tokenizer.fingerprint,
        f"The reward model {source} reads another tokenizer's tokens than the policy; train one "
        "from the same start.",
    )
    return from_model(model.to(device).eval().requires_grad_(False))


def from_model(model: RewardModel) -> Scorer:
    """Return the scorer that reads a model at the answer's last token."""

    @torch.no_grad()
    def score(rollout: Rollout) -> Float[Tensor, " batch"]:
        parts = zip(
            rollout.tokens.split(SCORED), last_token(rollout.mask).split(SCORED), strict=True
        )
        return torch.cat([scores_at(model, tokens, last).float() for tokens, last in parts])

    return score


def oracle(n: int, seed: int) -> Callable[[list[Prompt], list[str]], list[float]]:
    """Return the function that gives an answer to one of the world's first `n` training questions
    its gold score."""
    asked = {question.messages: question for question in world_questions(n, seed)}

    def score(prompts: list[Prompt], answers: list[str]) -> list[float]:
        known = all(prompt in asked for prompt in prompts)
        check(
            known,
            f"The oracle knows the answers to the questions of {WORLD} alone; name another "
            "--reward.",
        )
        return [
            gold(asked[prompt], answer).score
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    return score
