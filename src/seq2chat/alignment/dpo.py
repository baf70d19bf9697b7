"""Direct preference optimization: the policy itself is the reward model (Rafailov et al. 2023)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seq2chat.alignment.examples import (
    ExampleLoader,
    fingerprint,
    fitting_examples,
    split_examples,
)
from seq2chat.alignment.objectives import Measured, dpo_loss
from seq2chat.alignment.policy import PolicyTask
from seq2chat.alignment.rollout import answer_logp
from seq2chat.config import Recipe, check
from seq2chat.generation.decode import evaluating
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import frozen_copy
from seq2chat.text.batch import IGNORED, Batch, pad_rows
from seq2chat.text.chat import answer_ids
from seq2chat.text.conversations import Comparison, read_comparisons
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.nll import Loss

Pair = tuple[list[int], list[int], list[int]]
"""The ids of a prompt, its preferred answer and its rejected answer."""


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Preferred answers, followed by as many rejected answers to the same prompts. `answer` is True
    at the tokens of the answers."""

    answer: Bool[Tensor, "batch seq"]


class DPO(PolicyTask):
    """Training on the preferences of `data.corpus`, near the starting policy."""

    unit = "pair"

    def __init__(
        self, recipe: Recipe, policy: GPT, tokenizer: TextTokenizer, log: Log, status: Log
    ) -> None:
        self.reference = frozen_copy(policy)
        comparisons, encoded = read_preferences(recipe, tokenizer, policy.context, log)
        # Held out by prompt: pairs of the same prompt are too similar.
        train, held_out = split_examples(comparisons, recipe)
        pairs = [pair for c in train for pair in encoded[c]]
        self.held_out = [pair for c in held_out for pair in encoded[c]]
        log(f"{len(pairs):,} pairs of answers to train on, {len(self.held_out):,} held out")
        assert tokenizer.pad_id is not None
        self.pad_id: int = tokenizer.pad_id
        loader = ExampleLoader(
            len(pairs),
            fingerprint(tokenizer, *zip(*pairs, strict=True)),
            recipe.train.seed,
            labels=len(pairs),
            collate=lambda indices: pair_batch([pairs[i] for i in indices], self.pad_id),
        )
        prompts = [c.prompt for c in held_out]
        super().__init__(recipe, policy, tokenizer, loader, prompts, len(self.held_out))

    def measured_loss(self, model: GPT, batch: PairBatch) -> Measured:
        """Return the loss of the batch, summed over pairs, with its metrics."""
        with torch.no_grad():
            ref_logp = answer_logp(self.reference, batch.target, batch.answer).sum(1)
        logp = answer_logp(model, batch.target, batch.answer).sum(1)
        return self.pair_loss(*logp.chunk(2), *ref_logp.chunk(2))

    def pair_loss(
        self,
        chosen_logp: Float[Tensor, " pairs"],
        rejected_logp: Float[Tensor, " pairs"],
        ref_chosen_logp: Float[Tensor, " pairs"],
        ref_rejected_logp: Float[Tensor, " pairs"],
    ) -> Measured:
        """Return `objectives.dpo_loss`. Another loss of preference pairs overrides this method."""
        return dpo_loss(
            chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, self.align.beta
        )

    def loss(self, model: GPT, batch: PairBatch) -> Loss:
        loss_sum, n, _ = self.measured_loss(model, batch)
        return loss_sum, n

    def validation_batches(self, limit: int) -> Iterator[PairBatch]:
        # At most 500 prompts are held out, so all are used.
        size = self.rows_per_pass
        for first in range(0, len(self.held_out), size):
            yield pair_batch(self.held_out[first : first + size], self.pad_id)

    @torch.inference_mode()
    def validation_metrics(self, model: GPT) -> dict[str, float]:
        sums: dict[str, float] = {}
        with evaluating(model):
            for batch in self.validation_batches(0):
                _, n, metrics = self.measured_loss(model, batch.to(model.device))
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value.item() * int(n)
        return {name: total / len(self.held_out) for name, total in sums.items()}


def read_preferences(
    recipe: Recipe, tokenizer: TextTokenizer, context: int, log: Log
) -> tuple[list[Comparison], dict[Comparison, list[Pair]]]:
    """Return the comparisons of `data.corpus` that fit the context, and the pairs of each."""
    align = recipe.align
    assert align is not None
    comparisons = read_comparisons(
        recipe.data.corpus, align.examples, recipe.train.seed, log, align.strict
    )
    encoded = {c: preference_pairs(tokenizer, c) for c in comparisons}
    check(
        any(encoded.values()),
        f"{recipe.data.corpus} has no pair of answers with a preference.",
    )
    fitting = fitting_examples(
        [c for c in comparisons if encoded[c]],
        lambda c: max(len(prompt) + max(len(a), len(b)) for prompt, a, b in encoded[c]),
        context,
        align.strict,
        "comparisons",
        log,
    )
    return fitting, encoded


def preference_pairs(tokenizer: TextTokenizer, comparison: Comparison) -> list[Pair]:
    """Return a pair for every two answers that are not tied."""
    pairs = []
    for better, worse in comparison.pairs():
        prompt, chosen = answer_ids(tokenizer, comparison.prompt, better)
        _, rejected = answer_ids(tokenizer, comparison.prompt, worse)
        pairs.append((prompt, chosen, rejected))
    return pairs


def pair_batch(pairs: Sequence[Pair], pad_id: int) -> PairBatch:
    """Return the pairs as a batch."""
    rows = [(prompt, chosen) for prompt, chosen, _ in pairs]
    rows += [(prompt, rejected) for prompt, _, rejected in pairs]
    target = pad_rows([[*prompt, *answer] for prompt, answer in rows], pad_id)
    is_answer = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows]
    return PairBatch(
        target=target,
        labels=torch.full_like(target, IGNORED),
        answer=pad_rows(is_answer, 0).bool(),
    )
