"""Training examples: which fit the context, which are held out, and the order of the rest."""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from seq2chat.config import Recipe, check
from seq2chat.log import Log
from seq2chat.text.conversations import VALIDATION, Comparison, Demonstration, Query, split
from seq2chat.text.order import epoch_key, shuffled
from seq2chat.text.text_tokenizer import TextTokenizer

T = TypeVar("T")
Example = TypeVar("Example", Demonstration, Comparison, Query)


class ExampleLoader:
    """Loads examples in random order, each once per epoch.

    Sample k is a function of the examples, the seed and k. `collate` turns the indices of a batch
    into that batch. `labels` is the number of labels per epoch, and `per_step` the number of
    examples per step if that is not the batch size.
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
        self.n = n
        self.fingerprint = fingerprint
        self.seed = seed
        self.epoch_tokens = labels
        self.collate = collate
        self.per_step = per_step
        self._order = lru_cache(maxsize=2)(self._make_order)

    def epoch_batches(self, batch_size: int) -> float:
        return self.n / (self.per_step or batch_size)

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        return batch_size

    def batch(self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Any:
        """Return this rank's part of the batch of the samples from `first_sample` on."""
        numbers = range(first_sample + rank, first_sample + batch_size, world_size)
        places = (divmod(k, self.n) for k in numbers)
        return self.collate([int(self._order(epoch)[place]) for epoch, place in places])

    def _make_order(self, epoch: int) -> np.ndarray:
        return shuffled(self.n, epoch_key(self.fingerprint, self.seed, epoch)[:8])


def fingerprint(tokenizer: TextTokenizer, *parts: Sequence[Sequence[int]]) -> str:
    """Return a hash of lists of integers and their tokenizer."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for rows in parts:
        for row in rows:
            digest.update(len(row).to_bytes(8, "little"))
            digest.update(b"".join(int(x).to_bytes(8, "little", signed=True) for x in row))
    return digest.hexdigest()


def fitting_examples(
    examples: Sequence[T],
    length: Callable[[T], int],
    context: int,
    strict: bool,
    noun: str,
    log: Log,
) -> list[T]:
    """Return the examples of at most `context` tokens, and log the number of the others.

    Raises UserError if there are others and `strict` is set, or if no example fits.
    """
    lengths = [length(example) for example in examples]
    too_long = [number for number, n in enumerate(lengths, start=1) if n > context]
    if too_long:
        first = too_long[0]
        summary = (
            f"{len(too_long):,} of {len(examples):,} {noun} are longer than {context} tokens, the "
            f"room in the model's context; the first is number {first} with {lengths[first - 1]}"
        )
        check(not strict, f"{summary}; shorten them, or leave them out with --align.no-strict.")
        log(f"{summary}; they are left out.")
    kept = [example for example, n in zip(examples, lengths, strict=True) if n <= context]
    check(
        bool(kept),
        f"None of the {noun} fits the {max(0, context)} tokens of room in the model's context.",
    )
    return kept


def split_examples(
    examples: Sequence[Example], recipe: Recipe, most: int = VALIDATION
) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on, and those held out.

    Held out are `data.val_fraction` of the prompts, but at most `most`, spread evenly over them. No
    prompt is on both sides.
    """
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    check(len(prompts) > 1, "All examples have one prompt; give at least two, one to hold out.")
    held_out = set(split(prompts, min(recipe.data.val_fraction, most / len(prompts)))[1])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[example.prompt in held_out].append(example)
    return sides
