"""Naming the process that makes the others wait.

All processes of a run make their steps together, so the duration of a step doesn't tell which of
them is slow. Each therefore measures what it does alone: reading batches, and the forward passes
inside blocks, between which it waits for the others.
"""

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

from seq2chat.training.processes import gather

EVERY = 20  # steps between two comparisons
SLOWER = 1.5  # times the median of the others
NOISE = 0.02  # seconds per step that other programs of a machine may take from any process


class Stopwatch:
    """The seconds per step that this process computes alone.

    The processes compare them after every `EVERY` steps. A process is named once while it is slow.
    """

    def __init__(self, blocks: Iterable[nn.Module], device: torch.device) -> None:
        self.device = device
        self.hosts = gather(socket.gethostname())
        self.named: list[int] = []
        self._spans: list[list[tuple[Any, Any]]] = [[]]  # beginning and end, of each step
        self._began: Any = None
        for block in blocks:
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the body."""
        began = self._now()
        yield
        self._spans[-1].append((began, self._now()))

    def after_step(self, step: int) -> list[str]:
        """End a step, and return a sentence per process that has become slow. All processes have to
        call it."""
        self._spans.append([])
        if step % EVERY:
            return []
        every = gather(self._seconds())
        slow = stragglers(every)
        new = [rank for rank in slow if rank not in self.named]
        self.named = slow
        return [self._sentence(rank, every) for rank in new]

    def _sentence(self, rank: int, every: list[float]) -> str:
        others = median(every[:rank] + every[rank + 1 :])
        times = every[rank] / others
        return (
            f"Process {rank} on {self.hosts[rank]} slows the others down: it computes {times:.1f} "
            f"times as long per step, {every[rank]:.3g} s instead of {others:.3g} s."
        )

    def _enter(self, block: nn.Module, *_: object) -> None:
        if block.training:
            self._began = self._now()

    def _leave(self, block: nn.Module, *_: object) -> None:
        if block.training:
            self._spans[-1].append((self._began, self._now()))

    def _now(self) -> Any:
        """Return the time, on a GPU as an event that is read later, without waiting for it now."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self) -> float:
        """Return the median of the steps since the last call. A single slow step doesn't count."""
        steps = self._spans[:-1]
        self._spans = [[]]
        if self.device.type != "cuda":
            return median(sum(end - start for start, end in spans) for spans in steps)
        torch.cuda.synchronize(self.device)
        return median(sum(start.elapsed_time(end) for start, end in s) / 1000 for s in steps)


def stragglers(seconds: list[float]) -> list[int]:
    """Return the processes that take more than `SLOWER` times the median of the others, and more
    than `NOISE` longer.

    >>> stragglers([1.0, 1.1, 2.0, 0.9])
    [2]
    """
    others = [median(seconds[:rank] + seconds[rank + 1 :]) for rank in range(len(seconds))]
    limits = [max(SLOWER * other, other + NOISE) for other in others]
    return [rank for rank, own in enumerate(seconds) if own > limits[rank]]
