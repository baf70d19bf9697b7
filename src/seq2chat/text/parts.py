"""Documents in parts of about a megabyte, so that memory is bounded whatever their length."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

MAX_PART = 1 << 20  # characters that are encoded in one call

A = TypeVar("A")
B = TypeVar("B")


class Part(NamedTuple):
    """A part of a document of the split "train" or "val". `ends` marks the last part of the
    document, and `begins` the first one, which `regroup` sets."""

    text: str
    ends: bool = True
    split: str = "train"
    begins: bool = True


def regroup(parts: Iterable[Part], last_cut: Callable[[str], int]) -> Iterator[Part]:
    """Yield the same documents in parts of at most `MAX_PART` characters that can be encoded
    separately.

    `last_cut(text)` returns the last position where a cut does not change the tokens, or 0. A text
    of `MAX_PART` characters without such a position, for example an endless word, is cut at its
    end.
    """
    held = ""
    begins = True
    for part in parts:
        for start in range(0, max(1, len(part.text)), MAX_PART):
            held += part.text[start : start + MAX_PART]
            while len(held) >= MAX_PART:
                cut = last_cut(held[:MAX_PART]) or MAX_PART
                yield Part(held[:cut], False, part.split, begins)
                held = held[cut:]
                begins = False
        if part.ends:
            yield Part(held, True, part.split, begins)
            held = ""
            begins = True


def encode_parts(
    parts: Iterable[Part],
    last_cut: Callable[[str], int],
    encode: Callable[[list[Part]], list[np.ndarray]],
) -> Iterator[tuple[Part, np.ndarray]]:
    """Yield regrouped parts with their ids, uint32 of shape `(n_tokens,)`, in order, encoding on
    all cores.

    `encode` takes several short parts per call.
    """

    def encode_task(task: list[Part]) -> list[tuple[Part, np.ndarray]]:
        return list(zip(task, encode(task), strict=True))

    for encoded in _map_in_order(encode_task, _tasks(regroup(parts, last_cut))):
        yield from encoded


def join_documents(encoded: Iterable[tuple[Part, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield the ids of each document from the ids of its parts."""
    ids: list[np.ndarray] = []
    for part, part_ids in encoded:
        ids.append(part_ids)
        if part.ends:
            yield np.concatenate(ids)
            ids = []


def _tasks(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Group parts into tasks of about `MAX_PART` characters."""
    task: list[Part] = []
    size = 0
    for part in parts:
        task.append(part)
        size += len(part.text)
        if size >= MAX_PART // 2:
            yield task
            task = []
            size = 0
    if task:
        yield task


def _map_in_order(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield `function(item)` for each item like `map`, computed on all cores.

    Only a few items are read ahead, so that memory is bounded.
    """
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[B]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
