"""Batches, and a stateless loader: sample k is a pure function of the data, the seed and k.

The only state of a run is therefore the number of samples consumed. A resumed run sees the same
samples as an uninterrupted one, at any step and with any number of processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from seq2chat.config import check
from seq2chat.text.order import epoch_key, permute
from seq2chat.text.shards import Shards

IGNORED = -100
EVALUATION_ORDER = bytes(32)  # fixed key of the order of evaluation samples

B = TypeVar("B", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """The input of a model, and the labels to predict.

    `labels[b, t]` is the label of position t in row b, and -100 marks positions without one. Masks
    are True where a token may be attended to, and None allows attention everywhere. `segments`
    numbers the parts of a row: for a GPT its documents, so that attention stays inside each, and
    for a BERT its sentences, 0 or 1. None means one part. `is_next` is True for rows in which the
    second sentence follows the first.
    """

    target: Int64[Tensor, "batch seq"]
    labels: Int64[Tensor, "batch seq"]
    source: Int64[Tensor, "batch source_seq"] | None = None
    source_mask: Bool[Tensor, "batch source_seq"] | None = None
    target_mask: Bool[Tensor, "batch seq"] | None = None
    segments: Int64[Tensor, "batch seq"] | None = None
    is_next: Bool[Tensor, " batch"] | None = None

    def to(self: B, device: torch.device | str) -> B:
        """Return the same batch on `device`."""
        moved = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None:
                moved[field.name] = tensor.to(device, non_blocking=True)
        return type(self)(**moved)


class Loader:
    """A loader of training samples of `context` tokens.

    In each epoch the stream of tokens is closed into a circle, cut into windows from a random
    position on, and returned in random order. A stream of N tokens has N - 1 transitions from one
    token to the next, and each is a label exactly once per epoch. Positions of the last window that
    would repeat a transition are labeled -100. With `document_mask`, batches have `segments`.
    """

    def __init__(
        self, shards: Shards, context: int, seed: int, document_mask: bool = False
    ) -> None:
        self.shards = shards
        self.context = context
        self.seed = seed
        self.document_mask = document_mask
        self.n_transitions = shards.n_tokens - 1
        check(
            self.n_transitions >= context,
            f"The {shards.name} text has {shards.n_tokens} tokens, but model.context is {context}; "
            f"use a longer text or a context of at most {self.n_transitions}.",
        )
        self.n_windows = -(-self.n_transitions // context)
        self.fingerprint = shards.fingerprint
        self.epoch_tokens = self.n_windows * context

    def epoch_batches(self, batch_size: int) -> float:
        """Return the number of batches per epoch."""
        return self.n_windows / batch_size

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        """Return the number of samples in the batch that starts with `first_sample`."""
        return batch_size

    def sample(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `target`, `labels` and `segments` of sample k, int64 of shape `(context,)` each.

        Segments are all 0 without `document_mask`.
        """
        epoch, i = divmod(k, self.n_windows)
        key = epoch_key(self.shards.fingerprint, self.seed, epoch)
        offset = int.from_bytes(key[:8], "big") % self.n_transitions
        start = permute(i, self.n_windows, key) * self.context
        circle = offset + start + np.arange(self.context)
        first = int(circle[0]) % self.n_transitions
        # A window may run past the end of the circle: its head is read from the end of the stream,
        # its tail from the start.
        n_before_wrap = self.n_transitions - first
        head = self.shards.read(first, min(self.context, n_before_wrap) + 1).astype(np.int64)
        tail = self.shards.read(0, max(self.context - n_before_wrap, 0) + 1).astype(np.int64)
        target = np.concatenate([head[:-1], tail[:-1]])
        labels = np.concatenate([head[1:], tail[1:]])
        labels[start + np.arange(self.context) >= self.n_transitions] = IGNORED
        segments = self._segments(circle) if self.document_mask else np.zeros_like(target)
        return target, labels, segments

    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Batch:
        """Return this rank's rows of the global batch of samples first_sample .. first_sample +
        batch_size - 1.

        Rank r gets samples r, r + world_size, ... of these, so that the global batch does not
        depend on the number of ranks.
        """
        numbers = range(first_sample + rank, first_sample + batch_size, world_size)
        return self.collate([self.sample(k) for k in numbers])

    def collate(self, rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Batch:
        """Return samples as a batch."""
        target, labels, segments = (np.stack(column) for column in zip(*rows, strict=True))
        return _batch(target, labels, segments if self.document_mask else None)

    def _segments(self, circle: np.ndarray) -> np.ndarray:
        # Documents after the wrap get new numbers, as the circle may come back to the first one.
        turn, position = np.divmod(circle, self.n_transitions)
        return _documents(self.shards, position) + turn * self.shards.n_documents


def evaluation_batches(
    shards: Shards, context: int, batch_size: int, document_mask: bool = False, limit: int = 0
) -> Iterator[Batch]:
    """Yield the whole stream once, in order, in windows of `context` that do not overlap.

    With a `limit`, windows of about that many tokens are yielded, spread over the stream. Their
    order makes every prefix of them a sample as well.

    Every token of text is a label exactly once. The end-of-text tokens between documents are not
    (-100), so the sum of the losses belongs to the text alone and can be divided by its bytes. The
    last row is padded on the right, which causal attention ignores. The last batch may have fewer
    rows.
    """
    n_windows = -(-(shards.n_tokens - 1) // context)
    for windows in spread_batches(n_windows, batch_size, -(-limit // context)):
        rows = [_evaluation_row(shards, context, window) for window in windows]
        target, labels, segments = (np.stack(column) for column in zip(*rows, strict=True))
        yield _batch(target, labels, segments if document_mask else None)


def spread_batches(n: int, batch_size: int, limit: int = 0) -> Iterator[list[int]]:
    """Yield range(n) in batches, or with a `limit` that many of its numbers, in a fixed
    pseudo-random order."""
    count = min(n, limit) if limit else n
    for first in range(0, count, batch_size):
        batch = range(first, min(count, first + batch_size))
        if limit:
            yield [permute(i, n, EVALUATION_ORDER) for i in batch]
        else:
            yield list(batch)


def _evaluation_row(
    shards: Shards, context: int, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = window * context
    length = min(context, shards.n_tokens - 1 - first)
    tokens = shards.read(first, length + 1).astype(np.int64)
    target = np.full(context, shards.eos_id, dtype=np.int64)
    labels = np.full(context, IGNORED, dtype=np.int64)
    target[:length] = tokens[:-1]
    labels[:length] = np.where(tokens[1:] == shards.eos_id, IGNORED, tokens[1:])
    return target, labels, _documents(shards, first + np.arange(context))


def pad_rows(
    rows: Sequence[Sequence[int]] | Sequence[Sequence[float]], value: int | float
) -> Tensor:
    """Return rows of integers or floats as one tensor of shape `(batch, longest)`, with shorter
    rows padded with `value`."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _documents(shards: Shards, positions: np.ndarray) -> np.ndarray:
    return np.searchsorted(shards.starts, positions.astype(np.uint64), side="right") - 1


def _batch(target: np.ndarray, labels: np.ndarray, segments: np.ndarray | None) -> Batch:
    return Batch(
        target=torch.from_numpy(target),
        labels=torch.from_numpy(labels),
        segments=None if segments is None else torch.from_numpy(segments),
    )
