"""Supervised fine-tuning: a language model learns to answer as the demonstrations do (Ouyang et al.
2022, section 3.5).

The loss is that of the assistant's words alone. Conversations are packed into rows, side by side,
with attention that stays inside each and positions that begin anew, so that packing changes no
loss.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from seq2chat.alignment.policy import (
    ExampleLoader,
    fingerprint,
    split_examples,
    take_shape,
    that_fit,
)
from seq2chat.alignment.pretraining import mixed_step, pretraining_text
from seq2chat.alignment.reward_function import FunctionScorer, wanted_columns
from seq2chat.alignment.rollout import Scorer, ended_scores, roll_out
from seq2chat.alignment.units import in_score_units
from seq2chat.config import Recipe, check
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import IGNORED, Batch, pad_rows, spread_batches
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import ChatTokens, end_tokens, prompt_ids
from seq2chat.text.conversations import Prompt, Query, demonstration_tokens, read_demonstrations
from seq2chat.training.nll import chunked_nll_sum
from seq2chat.training.objective import Loss
from seq2chat.training.tasks import Say, Task

SHOWN = 4  # prompts whose answers are shown as a sample
JUDGED = 64  # held-out prompts whose answers a reward model scores, to choose among checkpoints


def sft(model: GPT, batch: Batch) -> Loss:
    """Cross-entropy in nats of the tokens that the assistant says, summed, and their number."""
    asked = batch.labels != IGNORED
    hidden = model.hidden(batch.target, batch.segments)
    return chunked_nll_sum(hidden[asked], model.head_weight, batch.labels[asked]), asked.sum()


def pack(conversations: Sequence[ChatTokens], context: int, pad_id: int) -> Batch:
    """Return the conversations in few rows of at most `context` positions, the longest first, each
    in the first row that has room. `segments` numbers them, so that none sees another."""
    rows: list[list[ChatTokens]] = []
    room: list[int] = []
    for conversation in sorted(conversations, key=lambda c: -len(c.ids)):
        length = len(conversation.ids) - 1
        index = next((i for i, left in enumerate(room) if left >= length), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(context)
        rows[index].append(conversation)
        room[index] -= length
    target = [[i for c in row for i in c.ids[:-1]] for row in rows]
    labels = [[i if asked else IGNORED for c in row for i, asked in c.predicted] for row in rows]
    segments = [[number for number, c in enumerate(row) for _ in c.ids[1:]] for row in rows]
    return Batch(
        pad_rows(target, pad_id),
        pad_rows(labels, IGNORED),
        segments=pad_rows(segments, len(conversations)),
    )


def make_sft(
    recipe: Recipe, model: GPT, tokenizer: ByteBPE, scorer: Scorer | None, say: Say, doing: Say
) -> tuple[Recipe, Task]:
    """Return the task of learning from `recipe.data.corpus`, and the recipe with the model's shape.

    With a `scorer` the checkpoint is kept whose answers it likes best (Ouyang et al. 2022, appendix
    C.1).
    """
    align, context = recipe.align, model.context
    columns = wanted_columns(scorer)
    demonstrations = read_demonstrations(
        recipe.data.corpus, align.examples, recipe.train.seed, say, align.strict, columns
    )
    if isinstance(scorer, FunctionScorer):
        scorer.check_columns([d.query for d in demonstrations], recipe.data.corpus)
    tokens = {d: demonstration_tokens(tokenizer, d) for d in demonstrations}
    fitting = that_fit(
        demonstrations,
        lambda d: len(tokens[d].ids) - 1,
        context,
        align.strict,
        "conversations",
        say,
    )
    train, held_out = split_examples(fitting, recipe)
    say(f"{len(train):,} conversations to learn from, {len(held_out):,} held out")
    encoded = [tokens[d] for d in train]
    unlearned = [sorted(d.unlearned) for d in train]
    assert tokenizer.pad_id is not None
    pad_id = tokenizer.pad_id
    loader = ExampleLoader(
        len(encoded),
        fingerprint(tokenizer, [c.ids for c in encoded], unlearned if any(unlearned) else []),
        recipe.train.seed,
        sum(sum(c.trained) for c in encoded),
        lambda rows: pack([encoded[i] for i in rows], context, pad_id),
    )

    n_validation = sum(sum(tokens[d].trained) for d in held_out)

    def validation(limit: int) -> Iterator[Batch]:
        n_wanted = -(-limit * len(held_out) // max(1, n_validation))
        for rows in spread_batches(len(held_out), recipe.train.batch_size, n_wanted):
            yield pack([tokens[held_out[i]] for i in rows], context, pad_id)

    queries = [d.query for d in held_out]
    recipe = with_shape(recipe, model)
    shown = partial(
        show_answers,
        tokenizer=tokenizer,
        prompts=[q.prompt for q in queries[:SHOWN]],
        max_tokens=align.max_tokens,
    )
    task = Task(sft, sft, loader, validation, n_validation, shown)
    text = pretraining_text(recipe, tokenizer, context, doing)
    if text is not None:
        check(
            recipe.train.accumulation == 1,
            "train.accumulation and align.ptx do not go together; leave one out.",
        )
        task = dataclasses.replace(
            task, step=lambda job: mixed_step(job, text), origin=text.fingerprint
        )
    if scorer is None:
        return recipe, task
    recipe = in_score_units(recipe, model, tokenizer, queries[:JUDGED], scorer)
    align = recipe.align
    best = Best(
        model,
        lambda: mean_score(
            model, tokenizer, queries[:JUDGED], scorer, align.max_tokens, align.missing_eos
        ),
    )
    judged = dataclasses.replace(
        task,
        report=lambda _, limit: {"score": best.score.item()},
        publish=best.choose,
        modules={"policy": model, "best": best},
    )
    return recipe, judged


def with_shape(recipe: Recipe, model: GPT) -> Recipe:
    """Return the recipe with the shape of the model it starts from; see `take_shape`."""
    return dataclasses.replace(recipe, model=take_shape(recipe, model.config))


class Best(nn.Module):
    """The weights that `measure` found best so far, and what it found."""

    def __init__(self, model: GPT, measure: Callable[[], float]) -> None:
        super().__init__()
        self.measure = measure
        self.current = [model]  # in a list: it is not a part of this one
        self.measured = -1  # version of the weights that were measured last
        self.model = copy.deepcopy(model)
        self.register_buffer("score", torch.tensor(float("-inf"), dtype=torch.float64))

    @torch.no_grad()
    def choose(self) -> GPT:
        """Measure the model if it has changed since the last time, keep it if it is better, and
        return the best."""
        version = sum(parameter._version for parameter in self.current[0].parameters())
        if version == self.measured:
            return self.model
        score = self.measure()
        if score > self.score.item():
            # In this order a copy that was interrupted is made again.
            self.model.load_state_dict(self.current[0].state_dict())
            self.score.fill_(score)
        self.measured = version
        return self.model


def mean_score(
    model: GPT,
    tokenizer: ByteBPE,
    queries: Sequence[Query],
    scorer: Scorer,
    max_tokens: int,
    missing_eos: float,
) -> float:
    """Return the mean score of one sampled answer to each query, the same random numbers each time;
    one that does not end scores minus `missing_eos`."""
    rollout = roll_out(model, tokenizer, queries, max_tokens, seed=0)
    return ended_scores(rollout, scorer(rollout), missing_eos).mean().item()


def show_answers(model: Any, tokenizer: ByteBPE, prompts: Sequence[Prompt], max_tokens: int) -> str:
    """Return the prompts with the likeliest answers of `model`, as text."""
    sampling = SamplingConfig(max_tokens=max_tokens, temperature=0.0)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    completions = generate(model, ids, sampling, ends := end_tokens(tokenizer))
    answers = [
        tokenizer.decode(i for i in completion.tokens if i not in ends)
        for [completion] in completions
    ]
    return "\n".join(
        f"  {prompt[-1].content}\n→ {answer}"
        for prompt, answer in zip(prompts, answers, strict=True)
    )
