"""A loader of a mixture of texts, as stateless as those of its texts."""

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Generic, Protocol, TypeVar

import numpy as np

from seq2chat.text.batch import Batch
from seq2chat.text.shards import Shards
from seq2chat.text.shares import schedule

Row = TypeVar("Row")

TrainingText = list[tuple[Shards, Fraction]]
"""The training split of each text of a mixture, or of the only text, with its share."""


class RowLoader(Protocol[Row]):
    """A loader whose batches are made of samples, such as `Loader` and `MaskedLoader`."""

    fingerprint: str
    epoch_tokens: int

    def epoch_batches(self, batch_size: int) -> float: ...
    def n_samples(self, first_sample: int, batch_size: int) -> int: ...
    def sample(self, k: int) -> Row: ...
    def collate(self, rows: Sequence[Row]) -> Batch: ...
    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Batch: ...


class MixedLoader(Generic[Row]):
    """A loader whose samples come from several texts, each with its share.

    Sample k is a function of the texts, their shares, the seed and k. The samples of each text come
    in the order of its own loader, epoch after epoch, so a small text with a large share is read
    more often than others. An epoch has as many samples as all texts together.
    """

    def __init__(self, loaders: Sequence[RowLoader[Row]], shares: Sequence[Fraction]) -> None:
        self.loaders = loaders
        self.order = schedule(list(shares))
        self.per_period = np.bincount(self.order, minlength=len(loaders))
        # The number of earlier samples of the period from the same text.
        self.before = np.zeros_like(self.order)
        for text in range(len(loaders)):
            own = self.order == text
            self.before[own] = np.arange(own.sum())
        parts = [f"{x.fingerprint} {share}" for x, share in zip(loaders, shares, strict=True)]
        self.fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self.epoch_tokens = sum(loader.epoch_tokens for loader in loaders)

    def epoch_batches(self, batch_size: int) -> float:
        """Return the number of batches per epoch."""
        return sum(loader.epoch_batches(batch_size) for loader in self.loaders)

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        """Return the number of samples in the batch that starts with `first_sample`."""
        return batch_size

    def place(self, k: int) -> tuple[int, int]:
        """Return the text of sample k, and the number of the sample in it."""
        period, place = divmod(k, len(self.order))
        text = int(self.order[place])
        return text, period * int(self.per_period[text]) + int(self.before[place])

    def sample(self, k: int) -> Row:
        """Return sample k, as the loader of its text does."""
        text, number = self.place(k)
        return self.loaders[text].sample(number)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Return samples as a batch."""
        return self.loaders[0].collate(rows)

    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Batch:
        """Return this rank's rows of a global batch, as `Loader.batch`."""
        numbers = range(first_sample + rank, first_sample + batch_size, world_size)
        return self.collate([self.sample(k) for k in numbers])


def mixed(text: TrainingText, loader: Callable[[Shards], RowLoader[Row]]) -> RowLoader[Row]:
    """Return a loader of a mixture, or of the only text. `loader` makes that of one text."""
    loaders = [loader(shards) for shards, _ in text]
    return loaders[0] if len(loaders) == 1 else MixedLoader(loaders, [share for _, share in text])


def joined(shards: Sequence[Shards]) -> Shards:
    """Return several texts as one stream, one after the other."""
    if len(shards) == 1:
        return shards[0]
    offsets = np.cumsum([0, *(part.n_tokens for part in shards)]).astype(np.uint64)
    starts = [part.starts + offset for part, offset in zip(shards, offsets, strict=False)]
    text = " ".join(part.fingerprint for part in shards)
    return Shards(
        name=shards[0].name,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        tokenizer=shards[0].tokenizer,
        eos_id=shards[0].eos_id,
        n_tokens=sum(part.n_tokens for part in shards),
        n_documents=sum(part.n_documents for part in shards),
        n_bytes=sum(part.n_bytes for part in shards),
        n_characters=sum(part.n_characters for part in shards),
        parts=[file for part in shards for file in part.parts],
        starts=np.concatenate(starts),
    )
