"""The reward model: predicts which answers annotators prefer, from answers they ranked.

Ouyang et al. 2022, section 3.5.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from seq2chat.alignment.examples import (
    ExampleLoader,
    fingerprint,
    fitting_examples,
    split_examples,
)
from seq2chat.alignment.objectives import ranking_loss
from seq2chat.alignment.policy import with_shape
from seq2chat.config import Recipe, RewardModelingConfig, check
from seq2chat.generation.decode import evaluating
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel, reward_model_from
from seq2chat.text.batch import IGNORED, Batch, pad_rows
from seq2chat.text.chat import answer_ids, conversation_ids
from seq2chat.text.conversations import Comparison, Prompt, read_comparisons
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.nll import Loss
from seq2chat.training.parallel import reshard
from seq2chat.training.types import Task

SAMPLES = 3  # held-out prompts whose ranked answers are shown per sample
ROWS_AT_ONCE = 64

Fork = tuple[list[int], list[list[int]]]
"""The ids of a prompt, and of each answer to it."""


@dataclass(frozen=True, kw_only=True)
class ComparisonBatch(Batch):
    """Comparisons, one per row: a prompt followed by its answers as branches of the row.

    Each answer has a rank, the number of its row, the position of its end token, at which it is
    scored, and a length.
    """

    branches: Int64[Tensor, "batch seq"]
    ranks: Int64[Tensor, " answers"]
    prompts: Int64[Tensor, " answers"]
    last: Int64[Tensor, " answers"]
    lengths: Int64[Tensor, " answers"]

    def scores(self, model: RewardModel) -> Float[Tensor, " answers"]:
        """Return the score that `model` gives to each answer."""
        return model.branching(self.target, self.branches)[self.prompts, self.last]


class RewardModeling(Task[RewardModel, TextTokenizer]):
    """Training of a reward model on the ranked answers of `data.corpus`, from a policy."""

    unit = "prompt"

    def __init__(
        self, recipe: Recipe, policy: GPT, tokenizer: TextTokenizer, log: Log, status: Log
    ) -> None:
        model = reward_model_from(policy)
        recipe = with_shape(recipe, model.config)
        train, held_out = split_comparisons(recipe, tokenizer, model.context, log)
        self.forks = {c: fork(tokenizer, c) for c in (*train, *held_out)}
        n_pairs = sum(len(c.pairs()) for c in train)
        log(
            f"{len(train):,} prompts with {n_pairs:,} pairs of answers to train on, "
            f"{len(held_out):,} prompts held out"
        )
        assert tokenizer.pad_id is not None
        self.pad_id: int = tokenizer.pad_id
        self.held_out = held_out
        rows = [row for c in train for row in (self.forks[c][0], *self.forks[c][1])]
        loader = ExampleLoader(
            len(train),
            fingerprint(tokenizer, rows, [c.ranks for c in train]),
            recipe.train.seed,
            labels=len(train),
            collate=lambda indices: self._collate([train[i] for i in indices]),
        )
        super().__init__(recipe, model, tokenizer, loader, len(held_out))
        self.demonstrations = [
            conversation_ids(tokenizer, c.prompt, c.answers[c.ranks.index(min(c.ranks))])
            for c in held_out
        ]

    def _collate(self, comparisons: Sequence[Comparison]) -> ComparisonBatch:
        forks = [self.forks[c] for c in comparisons]
        return comparison_batch(forks, [c.ranks for c in comparisons], self.pad_id)

    def loss(self, model: RewardModel, batch: ComparisonBatch) -> Loss:
        """Return equation 1 of Ouyang et al. 2022 summed over the prompts, and their number."""
        loss_sum, n, _ = ranking_loss(batch.scores(model), batch.ranks, batch.prompts)
        return loss_sum, n

    def validation_batches(self, limit: int) -> Iterator[ComparisonBatch]:
        # At most 500 prompts are held out, so all are used.
        size = self.rows_per_pass
        for first in range(0, len(self.held_out), size):
            yield self._collate(self.held_out[first : first + size])

    def validation_metrics(self, model: RewardModel) -> dict[str, float]:
        return ranking_metrics(model, self.validation_batches(0))

    def published(self) -> RewardModel:
        """Return the model with the bias that gives the best held-out answers the mean score 0
        (Ouyang et al. 2022, section 3.5)."""
        shifted = centered(self.model, self.demonstrations, self.pad_id)
        reshard(self.model)  # its modules are those of the shifted one
        return shifted

    def modules(self) -> Mapping[str, nn.Module]:
        return {"reward": self.model}

    def sample(self, model: RewardModel) -> str:
        return show_ranking(model, self.tokenizer, self.held_out[:SAMPLES])


def split_comparisons(
    recipe: Recipe, tokenizer: TextTokenizer, context: int, log: Log
) -> tuple[list[Comparison], list[Comparison]]:
    """Return the comparisons of `data.corpus` to train a reward model on, and those held out."""
    align = recipe.align
    assert isinstance(align, RewardModelingConfig)
    comparisons = read_comparisons(
        recipe.data.corpus, align.examples, recipe.train.seed, log, align.strict
    )
    untied = [c for c in comparisons if len(set(c.ranks)) > 1]
    if len(untied) < len(comparisons):
        n_tied = len(comparisons) - len(untied)
        log(f"{n_tied:,} of {len(comparisons):,} prompts have only ties and are left out.")
    check(bool(untied), f"{recipe.data.corpus} has no pair of answers with a preference.")
    fitting = fitting_examples(
        untied,
        lambda c: longest(*fork(tokenizer, c)),
        context,
        align.strict,
        "comparisons",
        log,
    )
    return split_examples(fitting, recipe)


def fork(tokenizer: TextTokenizer, comparison: Comparison) -> Fork:
    """Return the ids of the prompt, and those of each answer with its end token."""
    pairs = [answer_ids(tokenizer, comparison.prompt, answer) for answer in comparison.answers]
    prompt, _ = pairs[0]
    return prompt, [answer for _, answer in pairs]


def longest(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens of the prompt with its longest answer."""
    return len(prompt) + max(map(len, answers))


@torch.inference_mode()
def ranking_metrics(model: RewardModel, batches: Iterator[ComparisonBatch]) -> dict[str, float]:
    """Return the share of pairs that the model orders as the annotator did, the mean difference of
    their scores, and the correlation of the score with the number of tokens."""
    n_right = margin = n_pairs = 0.0
    scores: list[Tensor] = []
    lengths: list[Tensor] = []
    with evaluating(model):
        for batch in batches:
            batch = batch.to(model.device)
            score = batch.scores(model).float()
            _, _, metrics = ranking_loss(score, batch.ranks, batch.prompts)
            n = metrics["pairs"].item()
            n_right += metrics["accuracy"].item() * n
            margin += metrics["margin"].item() * n
            n_pairs += n
            scores.append(score)
            lengths.append(batch.lengths.float())
    correlation = torch.corrcoef(torch.stack([torch.cat(scores), torch.cat(lengths)]))[0, 1]
    return {
        "accuracy": n_right / n_pairs,
        "margin": margin / n_pairs,
        "length_correlation": correlation.nan_to_num(0.0).item(),
    }


def centered(
    model: RewardModel, demonstrations: Sequence[Sequence[int]], pad_id: int
) -> RewardModel:
    """Return the model with the bias that gives these conversations the mean score 0."""
    # FSDP has changed the class of a divided model, so that copy.copy fails.
    shifted = RewardModel.__new__(RewardModel)
    shifted.__dict__ |= model.__dict__
    bias = model.config.score_bias - score_rows(model, demonstrations, pad_id).mean().item()
    shifted.config = dataclasses.replace(model.config, score_bias=bias)
    return shifted


def show_ranking(
    model: RewardModel, tokenizer: TextTokenizer, comparisons: Sequence[Comparison]
) -> str:
    """Return prompts with their answers as text, each with the model's score and the annotator's
    rank."""
    lines = []
    for c in comparisons:
        scores = score_texts(model, tokenizer, [c.prompt] * len(c.answers), c.answers)
        lines.append(f"  {c.prompt[-1].content}")
        ordered = sorted(zip(c.ranks, scores.tolist(), c.answers, strict=True))
        lines += [f"{score:+6.2f}  rank {rank + 1}: {answer}" for rank, score, answer in ordered]
    return "\n".join(lines)


def score_texts(
    model: RewardModel, tokenizer: TextTokenizer, prompts: Sequence[Prompt], answers: Sequence[str]
) -> Float[Tensor, " batch"]:
    """Return the score of each answer to its prompt, including the end token."""
    pairs = zip(prompts, answers, strict=True)
    rows = [conversation_ids(tokenizer, prompt, answer) for prompt, answer in pairs]
    return score_rows(model, rows, tokenizer.pad_id or 0)


@torch.inference_mode()
def score_rows(
    model: RewardModel, rows: Sequence[Sequence[int]], pad_id: int
) -> Float[Tensor, " batch"]:
    """Return the score of each row at its last token, with dropout off."""
    scores: list[Tensor] = []
    with evaluating(model):
        for first in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[first : first + ROWS_AT_ONCE]
            last = torch.tensor([len(row) - 1 for row in part], device=model.device)
            tokens = pad_rows(part, pad_id).to(model.device)
            scores.append(scores_at(model, tokens, last).float())
    return torch.cat(scores)


def scores_at(
    model: RewardModel, tokens: Int64[Tensor, "batch seq"], last: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the score of each row at its position `last`. Later tokens have no influence."""
    return model(tokens).gather(1, last[:, None])[:, 0]


def comparison_batch(
    forks: Sequence[Fork], ranks: Sequence[Sequence[int]], pad_id: int
) -> ComparisonBatch:
    """Return the batch of prompts with their ranked answers.

    Every padding token is a branch of its own, so that no position exceeds the context.
    """
    lengths = [[len(answer) for answer in answers] for _, answers in forks]
    rows = [prompt + [token for answer in answers for token in answer] for prompt, answers in forks]
    target = pad_rows(rows, pad_id)
    width = target.shape[1]
    branches = torch.arange(1, width + 1).repeat(len(rows), 1) + max(map(len, lengths))
    ends: list[int] = []
    for row, (prompt, answers) in enumerate(forks):
        ids = [0] * len(prompt)
        for number, answer in enumerate(answers, start=1):
            ids += [number] * len(answer)
        branches[row, : len(ids)] = torch.tensor(ids)
        ends += [len(prompt) + end - 1 for end in accumulate(lengths[row])]
    return ComparisonBatch(
        target=target,
        labels=torch.full_like(target, IGNORED),
        branches=branches,
        ranks=torch.tensor([rank for row in ranks for rank in row]),
        prompts=torch.tensor([row for row, answers in enumerate(lengths) for _ in answers]),
        last=torch.tensor(ends),
        lengths=torch.tensor([length for answers in lengths for length in answers]),
    )
