"""From conversations to batches: the model to start from, the examples that fit it, and the order
they are dealt in."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from seq2chat.config import GPTConfig, Recipe, UserError, check
from seq2chat.models.folder import require_family
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import (
    CHAT_TEMPLATE,
    END,
    START,
)
from seq2chat.text.conversations import VALIDATION, Comparison, Demonstration, Query, split
from seq2chat.text.order import epoch_key, shuffled
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.tasks import Say

T = TypeVar("T")
Example = TypeVar("Example", Demonstration, Comparison, Query)


def load_policy(start: str) -> tuple[GPT, ByteBPE]:
    """Return the language model in the run or model folder `start`, in float32, and its tokenizer
    with ChatML's control tokens; a model whose vocabulary lacks them is given rows for them.

    Raises UserError for a folder that holds no GPT.
    """
    check(start != "", "Which model shall be aligned? Name a run or a model folder with --start.")
    model, tokenizer = load_checkpoint(Path(start))
    require_family(model, "gpt")
    assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
    tokenizer = tokenizer.with_chat((START, END), "<|pad|>", CHAT_TEMPLATE)
    return grow_vocabulary(model, tokenizer.vocab_size), tokenizer


def set_dropout(model: GPT, share: float) -> None:
    """Have `model` drop this share of its activations in training, whatever it was built with."""
    model.config = dataclasses.replace(model.config, dropout=share)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


@torch.no_grad()
def grow_vocabulary(model: GPT, vocab_size: int) -> GPT:
    """Return `model` with embeddings for `vocab_size` tokens at least. A new token begins as the
    mean of the old ones, whose probabilities it then hardly changes (Hewitt 2021, "Initializing new
    word embeddings")."""
    old = model.config.vocab_size
    if vocab_size <= old:
        return model
    larger = GPT(GPTConfig(**vars(model.config) | {"vocab_size": vocab_size}))
    state = model.state_dict()
    for name, tensor in state.items():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.cat(
                [tensor, tensor.mean(0, keepdim=True).expand(vocab_size - old, -1)]
            )
    larger.load_state_dict(state)
    larger.compute_dtype = model.compute_dtype
    return larger.eval()


def that_fit(
    examples: Sequence[T],
    length: Callable[[T], int],
    context: int,
    strict: bool,
    what: str,
    say: Say,
) -> list[T]:
    """Return the examples of at most `context` tokens. The number of the others is told, or raises
    UserError with `strict`; so does there being none."""
    lengths = [length(example) for example in examples]
    longer = [number for number, n in enumerate(lengths, start=1) if n > context]
    if longer:
        told = (
            f"{len(longer):,} of {len(examples):,} {what} are longer than {context} tokens, all "
            f"that the model's context has room for; the first is number {longer[0]} with "
            f"{lengths[longer[0] - 1]}"
        )
        check(not strict, f"{told}; shorten them, or leave them out with --no-align.strict.")
        say(f"{told}; they are left out.")
    kept = [example for example, n in zip(examples, lengths, strict=True) if n <= context]
    check(
        bool(kept),
        f"None of the {what} fits the {max(0, context)} tokens that the model's context has room "
        "for.",
    )
    return kept


class ExampleLoader:
    """Deals examples in a random order, each once an epoch: sample k is a function of the examples,
    the seed and k.

    `collate` makes a batch of the examples' numbers; `labels` are the things that are learned from
    in an epoch, and `per_step` the examples that a step takes where that is not a batch of them.
    """

    def __init__(
        self,
        n: int,
        fingerprint: str,
        seed: int,
        labels: int,
        collate: Callable[[list[int]], Any],
        per_step: int = 0,
    ) -> None:
        self.n, self.fingerprint, self.seed, self.epoch_tokens, self.collate = (
            n,
            fingerprint,
            seed,
            labels,
            collate,
        )
        self.per_step = per_step
        self._order = lru_cache(maxsize=2)(self._make_order)

    def epoch_batches(self, batch_size: int) -> float:
        return self.n / (self.per_step or batch_size)

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        return batch_size

    def batch(self, first_sample: int, batch_size: int) -> Any:
        """Return what `collate` makes of the examples dealt from the `first_sample`-th on."""
        places = (divmod(k, self.n) for k in range(first_sample, first_sample + batch_size))
        return self.collate([int(self._order(epoch)[place]) for epoch, place in places])

    def _make_order(self, epoch: int) -> Any:
        return shuffled(self.n, epoch_key(self.fingerprint, self.seed, epoch)[:8])


def fingerprint(tokenizer: ByteBPE, *parts: Sequence[Sequence[int]]) -> str:
    """Return the hash of lists of numbers together with their tokenizer."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for rows in parts:
        for row in rows:
            digest.update(len(row).to_bytes(8, "little"))
            digest.update(b"".join(int(x).to_bytes(8, "little", signed=True) for x in row))
    return digest.hexdigest()


def split_examples(
    examples: Sequence[Example], recipe: Recipe, most: int = VALIDATION
) -> tuple[list[Example], list[Example]]:
    """Return examples to learn from, and those of the last `data.val_fraction` of their prompts, at
    most `most`, held out: no prompt is on both sides."""
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    check(
        len(prompts) > 1,
        "All examples have one prompt; give at least two: one to learn from, one held out.",
    )
    _, unseen = split(prompts, min(recipe.data.val_fraction, most / len(prompts)))
    held_out = set(unseen)
    sides: tuple[list[Example], list[Example]] = [], []
    for example in examples:
        sides[example.prompt in held_out].append(example)
    return sides


def take_shape(recipe: Recipe, shape: GPTConfig) -> GPTConfig:
    """Return the shape of the model to start from, with the recipe's dropout.

    Raises UserError where the recipe asks for another shape: it is the starting model's, and can't
    be chosen.
    """
    default = type(recipe.model)()
    for name, value in vars(recipe.model).items():
        asked = value not in (getattr(default, name, None), getattr(shape, name, None))
        if asked and name not in ("dropout", "score_bias"):
            raise UserError(
                f"model.{name} is {value}, but align.start has {getattr(shape, name, None)}; leave "
                "it out: the model is the one that is started from."
            )
    return type(shape)(**vars(shape) | {"dropout": recipe.model.dropout})
