"""Direct preference optimisation: the policy itself is the reward model (Rafailov et al. 2023)."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from seq2chat.alignment.objectives import Measured, dpo_loss
from seq2chat.alignment.policy import ExampleLoader, fingerprint, split_examples, that_fit
from seq2chat.alignment.rollout import answer_logp
from seq2chat.alignment.sft import SHOWN, show_answers, with_shape
from seq2chat.config import Recipe, check
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import IGNORED, Batch, pad_rows
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import answer_ids
from seq2chat.text.conversations import Comparison, read_comparisons
from seq2chat.training.objective import Loss
from seq2chat.training.tasks import Say, Task

Pair = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Preferred answers, and behind them as many rejected ones to the same prompts; `answer` marks
    their tokens."""

    answer: Bool[Tensor, "batch seq"]


def measure(model: GPT, reference: GPT, batch: PairBatch, beta: float) -> Measured:
    """Return the DPO loss of the batch; see `objectives.dpo_loss`."""
    with torch.no_grad():
        fixed = answer_logp(reference, batch.target, batch.answer).sum(1)
    logp = answer_logp(model, batch.target, batch.answer).sum(1)
    (chosen, rejected), (ref_chosen, ref_rejected) = logp.chunk(2), fixed.chunk(2)
    return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)


def make_dpo(recipe: Recipe, model: GPT, tokenizer: ByteBPE, say: Say) -> tuple[Recipe, Task]:
    """Return the task of preferring what the readers of `recipe.data.corpus` preferred, and staying
    near `model` as it is now."""
    align, reference = recipe.align, copy.deepcopy(model).eval().requires_grad_(False)
    compared = read_comparisons(
        recipe.data.corpus, align.examples, recipe.train.seed, say, align.strict
    )
    encoded = {c: _pairs(tokenizer, c) for c in compared}
    check(
        any(encoded.values()),
        f"{recipe.data.corpus} has no two answers of which one was preferred.",
    )
    with_pairs = [c for c in compared if encoded[c]]
    fitting = that_fit(
        with_pairs,
        lambda c: max(len(p) + max(len(a), len(b)) for p, a, b in encoded[c]),
        model.context,
        align.strict,
        "comparisons",
        say,
    )
    # Held out by prompt: pairs of one prompt know too much of each other.
    train, held_out = split_examples(fitting, recipe)
    pairs, unseen = ([pair for c in part for pair in encoded[c]] for part in (train, held_out))
    say(f"{len(pairs):,} pairs of answers to learn from, {len(unseen):,} held out")
    assert tokenizer.pad_id is not None
    collate = partial(pair_batch, pad_id=tokenizer.pad_id)
    loader = ExampleLoader(
        len(pairs),
        fingerprint(tokenizer, *zip(*pairs, strict=True)),
        recipe.train.seed,
        len(pairs),
        lambda rows: collate([pairs[i] for i in rows]),
    )

    def objective(model: GPT, batch: PairBatch) -> Loss:
        return measure(model, reference, batch, align.beta)[:2]

    def validation(limit: int = 0) -> Iterator[PairBatch]:
        size = recipe.train.batch_size
        return (collate(unseen[first : first + size]) for first in range(0, len(unseen), size))

    @torch.inference_mode()
    def report(model: GPT, limit: int) -> dict[str, float]:
        was_training = model.training
        model.eval()
        sums: dict[str, float] = {}
        for batch in validation():
            _, n, metrics = measure(model, reference, batch.to(model.device), align.beta)
            sums = {
                name: sums.get(name, 0.0) + value.item() * int(n) for name, value in metrics.items()
            }
        model.train(was_training)
        return {name: total / len(unseen) for name, total in sums.items()}

    sample = partial(
        show_answers,
        tokenizer=tokenizer,
        prompts=[c.prompt for c in held_out[:SHOWN]],
        max_tokens=align.max_tokens,
    )
    task = Task(
        objective,
        objective,
        loader,
        validation,
        len(unseen),
        sample,
        unit="pair",
        report=report,
    )
    return with_shape(recipe, model), task


def _pairs(tokenizer: ByteBPE, compared: Comparison) -> list[Pair]:
    """Return (prompt, preferred answer, rejected answer) in ids for every two answers that are not
    tied."""
    pairs = []
    for better, worse in compared.pairs():
        (prompt, chosen), (_, rejected) = (
            answer_ids(tokenizer, compared.prompt, text) for text in (better, worse)
        )
        pairs.append((prompt, chosen, rejected))
    return pairs


def pair_batch(pairs: Sequence[Pair], pad_id: int) -> PairBatch:
    """Return the pairs as a batch."""
    rows = [
        (prompt, pair[side])
        for side in (1, 2)
        for prompt, pair in ((pair[0], pair) for pair in pairs)
    ]
    target = pad_rows([[*prompt, *answer] for prompt, answer in rows], pad_id)
    answer = pad_rows([[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows], 0).bool()
    return PairBatch(target=target, labels=torch.full_like(target, IGNORED), answer=answer)
