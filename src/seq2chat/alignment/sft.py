"""Supervised fine-tuning: a language model learns from demonstrations (Ouyang et al. 2022, section
3.5).

Only the assistant's tokens have a loss. Conversations are packed into rows side by side. Attention
stays inside each conversation and positions restart, so packing does not change the loss.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from seq2chat.alignment.examples import (
    ExampleLoader,
    fingerprint,
    fitting_examples,
    split_examples,
)
from seq2chat.alignment.judges import scorer_of
from seq2chat.alignment.policy import PolicyTask
from seq2chat.alignment.pretraining import PretrainingMix, make_mix
from seq2chat.alignment.rehearsal import can_rehearse, rehearsal
from seq2chat.alignment.rollout import Scorer, roll_out
from seq2chat.alignment.samples import mean_score
from seq2chat.alignment.units import with_score_units
from seq2chat.config import Recipe, SFTConfig, check
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import frozen_copy
from seq2chat.text.batch import IGNORED, Batch, pad_rows, spread_batches
from seq2chat.text.chat import ChatTokens
from seq2chat.text.conversations import Demonstration, demonstration_tokens, read_demonstrations
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.nll import Loss, chunked_nll_sum
from seq2chat.training.parallel import whole
from seq2chat.training.processes import from_main
from seq2chat.training.types import Job, Update

MIN_ROW = 512  # positions of a packed row, if the context allows
SCORED = 64  # held-out prompts whose answers a scorer compares checkpoints by


def sft_loss(model: GPT, batch: Batch) -> Loss:
    """Return the summed cross-entropy in nats of the assistant's tokens, and their number."""
    is_label = batch.labels != IGNORED
    hidden = model.hidden(batch.target, batch.segments)[is_label]
    return chunked_nll_sum(hidden, model.head_weight, batch.labels[is_label]), is_label.sum()


def pack(conversations: Sequence[ChatTokens], context: int, pad_id: int) -> Batch:
    """Return the conversations packed into few rows of at most `context` positions: longest first,
    each in the first row with room. `segments` numbers the conversations, so that none attends to
    another.

    A row is not much longer than the longest conversation, as the time of attention grows with the
    square of its length.
    """
    rows: list[list[ChatTokens]] = []
    room: list[int] = []
    longest_first = sorted(conversations, key=lambda c: -len(c.ids))
    context = min(context, max(MIN_ROW, len(longest_first[0].ids)))
    for conversation in longest_first:
        length = len(conversation.ids) - 1
        index = next((i for i, left in enumerate(room) if left >= length), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(context)
        rows[index].append(conversation)
        room[index] -= length
    target: list[list[int]] = []
    labels: list[list[int]] = []
    segments: list[list[int]] = []
    for row in rows:
        target.append([token for c in row for token in c.ids[:-1]])
        predicted = [pair for c in row for pair in c.predicted]
        labels.append([token if is_label else IGNORED for token, is_label in predicted])
        segments.append([number for number, c in enumerate(row) for _ in c.ids[1:]])
    return Batch(
        pad_rows(target, pad_id),
        pad_rows(labels, IGNORED),
        segments=pad_rows(segments, len(conversations)),
    )


class SFT(PolicyTask):
    """Supervised fine-tuning on the conversations of `data.corpus`.

    With a scorer, the checkpoint whose answers score best is kept (Ouyang et al. 2022, appendix
    C.1).
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: GPT,
        tokenizer: TextTokenizer,
        log: Log,
        status: Log,
    ) -> None:
        assert isinstance(recipe.align, SFTConfig)
        scorer = scorer_of(recipe, tokenizer, policy.device) if recipe.align.reward else None
        examples = read_examples(recipe, scorer, log)
        encoded = {d: demonstration_tokens(tokenizer, d) for d in examples}
        train, held_out = split_fitting(examples, encoded, recipe, policy.context, log)
        rehearsed = rehearse(recipe.align, policy, tokenizer, log, status)
        assert tokenizer.pad_id is not None
        self.context = policy.context
        self.pad_id: int = tokenizer.pad_id
        self.held_out = [encoded[d] for d in held_out]
        self.mix = make_mix(recipe, tokenizer, policy.context, status)
        queries = [d.query for d in held_out]
        super().__init__(
            recipe,
            policy,
            tokenizer,
            self._loader(recipe, tokenizer, train, [encoded[d] for d in train], rehearsed),
            [query.prompt for query in queries],
            validation_tokens=sum(sum(c.trained) for c in self.held_out),
        )
        self.scorer = scorer
        self.queries = queries[:SCORED]
        self.best = None if scorer is None else Best(policy)
        if scorer is not None:
            with torch.no_grad():
                rollout = roll_out(policy, tokenizer, self.queries, recipe.align.max_tokens, seed=0)
                self.recipe = with_score_units(recipe, scorer(rollout).float())
        if self.mix is not None:
            check(
                recipe.train.accumulation == 1,
                "train.accumulation and align.ptx can't be combined; leave one out.",
            )
            self.origin = self.mix.fingerprint

    def _loader(
        self,
        recipe: Recipe,
        tokenizer: TextTokenizer,
        train: Sequence[Demonstration],
        conversations: Sequence[ChatTokens],
        rehearsed: Sequence[ChatTokens],
    ) -> ExampleLoader:
        unlearned = [sorted(d.unlearned) for d in train]
        ids = [c.ids for c in conversations]
        # The rehearsed answers are not hashed: on another machine, some may differ.
        conversations = [*conversations, *rehearsed]
        return ExampleLoader(
            len(conversations),
            fingerprint(tokenizer, ids, unlearned if any(unlearned) else []),
            recipe.train.seed,
            labels=sum(sum(c.trained) for c in conversations),
            collate=lambda rows: pack([conversations[i] for i in rows], self.context, self.pad_id),
        )

    @property
    def align(self) -> SFTConfig:
        assert isinstance(self.recipe.align, SFTConfig)
        return self.recipe.align

    def loss(self, model: GPT, batch: Batch) -> Loss:
        return sft_loss(model, batch)

    def step(self, job: Job) -> Update:
        return super().step(job) if self.mix is None else self._mixed_step(job, self.mix)

    def _mixed_step(self, job: Job, mix: PretrainingMix) -> Update:
        """Take one optimizer step on a batch of conversations and windows of pretraining text."""
        batch = job.next_batch()
        loss, n = self.loss(self.policy, batch)
        loss.backward()
        loss_sum, n = self.parallel.total(loss, n)
        ptx_loss, ptx_flops = mix.add_gradient(job, self.policy, job.progress.step, n)
        mean, norm = job.apply_gradients(job.optimizers, loss_sum, n)
        flops = ptx_flops + self.policy.flops(batch)
        return Update(mean, norm, int(n), flops, {"ptx_loss": ptx_loss})

    def validation_batches(self, limit: int) -> Iterator[Batch]:
        n_held_out = len(self.held_out)
        # The limit in tokens as a number of conversations, rounded up.
        n_wanted = -(-limit * n_held_out // max(1, self.validation_tokens))
        for rows in spread_batches(n_held_out, self.rows_per_pass, n_wanted):
            yield pack([self.held_out[i] for i in rows], self.context, self.pad_id)

    def validation_metrics(self, model: GPT) -> dict[str, float]:
        return {} if self.best is None else {"score": self.best.score.item()}

    def result(self) -> GPT:
        if self.best is None or self.scorer is None:
            return self.policy
        if self.best.is_outdated(self.policy):
            policy = whole(self.policy)
            score = mean_score(
                policy,
                self.tokenizer,
                self.queries,
                self.scorer,
                self.align.max_tokens,
                self.align.missing_eos,
            )
            self.best.update(policy, score, self.policy)
        return self.best.model

    def modules(self) -> Mapping[str, nn.Module]:
        if self.best is None:
            return super().modules()
        return {"policy": self.policy, "best": self.best}


def rehearse(
    align: SFTConfig, policy: GPT, tokenizer: TextTokenizer, log: Log, status: Log
) -> list[ChatTokens]:
    """Return the conversations of `rehearsal`, none if the starting model has not learned to
    chat."""
    if not align.rehearse:
        return []
    if not can_rehearse(align.start):
        log("nothing is rehearsed, because the starting model has not learned to chat.")
        return []
    status("answering general requests, to be rehearsed")
    examples = from_main(lambda: rehearsal(policy, tokenizer, align.rehearse))
    log(
        f"{len(examples)} of the model's own answers are rehearsed, so that it forgets less "
        "(align.rehearse)"
    )
    return [demonstration_tokens(tokenizer, d) for d in examples]


def read_examples(recipe: Recipe, scorer: Scorer | None, log: Log) -> list[Demonstration]:
    """Return the demonstrations of `data.corpus`, with the columns that the scorer uses."""
    align = recipe.align
    assert isinstance(align, SFTConfig)
    columns = frozenset() if scorer is None else scorer.columns
    examples = read_demonstrations(
        recipe.data.corpus, align.examples, recipe.train.seed, log, align.strict, columns
    )
    if scorer is not None:
        scorer.check_columns([d.query for d in examples], recipe.data.corpus)
    return examples


def split_fitting(
    examples: Sequence[Demonstration],
    encoded: Mapping[Demonstration, ChatTokens],
    recipe: Recipe,
    context: int,
    log: Log,
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Return the demonstrations that fit the context: those to train on, and those held out."""
    assert isinstance(recipe.align, SFTConfig)
    fitting = fitting_examples(
        examples,
        lambda d: len(encoded[d].ids) - 1,
        context,
        recipe.align.strict,
        "conversations",
        log,
    )
    check(
        any(any(encoded[d].trained) for d in fitting),
        "The model's chat template leaves out all answers that are to be trained.",
    )
    train, held_out = split_examples(fitting, recipe)
    log(f"{len(train):,} conversations to train on, {len(held_out):,} held out")
    return train, held_out


class Best(nn.Module):
    """The best weights so far and their score, in a form that a checkpoint can store."""

    score: torch.Tensor

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.version = -1  # version of the weights that were scored last
        self.model = frozen_copy(model)
        self.register_buffer("score", torch.tensor(float("-inf"), dtype=torch.float64))

    def is_outdated(self, model: GPT) -> bool:
        """Return whether `model` has changed since it was last scored."""
        return _version(model) != self.version

    @torch.no_grad()
    def update(self, model: GPT, score: float, trained: GPT) -> None:
        """Keep the weights of `model`, the whole of `trained`, if `score` is the best so far."""
        if score > self.score.item():
            # In this order an interrupted copy is repeated.
            self.model.load_state_dict(model.state_dict())
            self.score.fill_(score)
        self.version = _version(trained)


def _version(model: GPT) -> int:
    """Return a number that changes with every update of the weights."""
    return sum(parameter._version for parameter in model.parameters())
