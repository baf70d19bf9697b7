"""Batches, and the loader that deals them: sample k is a pure function of the data, the seed and k.

The only state of a loader is therefore the number of samples consumed, and a resumed run sees what
the uninterrupted one would have seen, at any step and with any number of processes.
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
EVALUATION_ORDER = bytes(32)  # key of the order in which samples are measured: always the same

B = TypeVar("B", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """What a model is given, row by row.

    `labels[b, t]` is what position t of row b should predict, -100 where nothing is asked. Masks
    are True where a token may be attended to; None means everywhere. `segments` numbers the part of
    a row that each position belongs to: for a GPT its document, so that attention stays inside; for
    a BERT its sentence, 0 or 1. None means one part. `is_next` tells for each row whether the
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
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
            if tensor is not None
        }
        return type(self)(**moved)


class Loader:
    """Deals training samples of `context` tokens.

    Each epoch closes the stream of tokens into a circle, cuts it into windows from a random place
    on, and deals them in random order. A stream of N tokens has N - 1 transitions from a token to
    the next, and each is a label exactly once an epoch: the places of the last window that go round
    again are labelled -100. With `document_mask`, batches carry `segments`.
    """

    def __init__(
        self, shards: Shards, context: int, seed: int, document_mask: bool = False
    ) -> None:
        self.shards, self.context, self.seed, self.document_mask = (
            shards,
            context,
            seed,
            document_mask,
        )
        self.n_transitions = shards.n_tokens - 1
        check(
            self.n_transitions >= context,
            f"The {shards.name} text has {shards.n_tokens} tokens, but model.context is {context}; "
            f"use a longer text or a context of at most {self.n_transitions}.",
        )
        self.n_windows = -(-self.n_transitions // context)
        self.fingerprint, self.epoch_tokens = shards.fingerprint, self.n_windows * context

    def epoch_batches(self, batch_size: int) -> float:
        """Return the number of batches in an epoch."""
        return self.n_windows / batch_size

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        """Return how many samples the batch that begins with `first_sample` has, over all ranks."""
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

        Rank r takes samples r, r + world_size, ... of these, so that the ranks together have the
        same global batch whatever their number.
        """
        samples = range(first_sample + rank, first_sample + batch_size, world_size)
        target, labels, segments = (
            np.stack(rows) for rows in zip(*map(self.sample, samples), strict=True)
        )
        return _batch(target, labels, segments if self.document_mask else None)

    def _segments(self, circle: np.ndarray) -> np.ndarray:
        turn, position = np.divmod(circle, self.n_transitions)
        return _documents(self.shards, position) + turn * self.shards.n_documents


def evaluation_batches(
    shards: Shards, context: int, batch_size: int, document_mask: bool = False, limit: int = 0
) -> Iterator[Batch]:
    """Yield the whole stream once, in order, in windows of `context` that do not overlap.

    With a `limit` they are windows of about so many tokens, spread over the stream, in an order
    that makes every beginning of them a sample as well.

    Every token of text is a label exactly once. The end-of-text tokens between documents are not
    (-100), so that the sum of the losses is that of the text alone and can be divided by its bytes.
    The last row is padded on the right, where causal attention does not look; the last batch may
    have fewer rows.
    """
    n_windows = -(-(shards.n_tokens - 1) // context)
    for windows in spread_batches(n_windows, batch_size, -(-limit // context)):
        rows = [_evaluation_row(shards, context, window) for window in windows]
        target, labels, segments = (np.stack(column) for column in zip(*rows, strict=True))
        yield _batch(target, labels, segments if document_mask else None)


def spread_batches(n: int, batch_size: int, limit: int = 0) -> Iterator[list[int]]:
    """Yield range(n) in batches; with a `limit` only so many of its numbers, in a fixed
    pseudo-random order."""
    count = min(n, limit) if limit else n
    for first in range(0, count, batch_size):
        batch = range(first, min(count, first + batch_size))
        yield [permute(i, n, EVALUATION_ORDER) for i in batch] if limit else list(batch)


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
    """Return rows of whole or of floating point numbers as one tensor (batch, longest), `value`
    behind the shorter ones."""
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
