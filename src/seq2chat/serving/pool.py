"""Threads for one kind of work beside the event loop, with a bound on what waits."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import TypeVar

from seq2chat.generation.request import QueueFull

T = TypeVar("T")


class Pool:
    """Runs functions in `n_threads` threads, in their order. At most `most_waiting` wait, any
    number with None.

    Each kind of work has a pool of its own, so that one kind never keeps another waiting for a
    thread.
    """

    def __init__(self, name: str, n_threads: int, most_waiting: int | None = 256) -> None:
        self.name, self.most_waiting = name, most_waiting
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix=name)
        self._n_busy = 0
        self._most_busy = inf if most_waiting is None else n_threads + most_waiting

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. A caller that is cancelled takes its work with it unless
        that has begun.

        Raises QueueFull when too many wait.
        """
        if self._n_busy >= self._most_busy:
            raise QueueFull(
                f"{self.most_waiting} requests are waiting for {self.name} already; try again"
                " later."
            )
        self._n_busy += 1
        future = self._executor.submit(work)
        # A function that has begun is busy until its end, whoever still waits for it.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._free(loop))
        return await asyncio.wrap_future(future)

    def _free(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._one_less)

    def _one_less(self) -> None:
        self._n_busy -= 1
