"""Thread pools for work outside the event loop, with bounded queues."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import TypeVar

from seq2chat.generation.request import QueueFull

T = TypeVar("T")


class Pool:
    """Runs functions in `n_threads` threads, in their order.

    At most `max_waiting` functions wait, or any number with None. Each kind of work has its own
    pool, so that one kind never keeps another waiting for a thread.
    """

    def __init__(self, name: str, n_threads: int, max_waiting: int | None = 256) -> None:
        self.name = name
        self.max_waiting = max_waiting
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix=name)
        self._n_busy = 0
        self._max_busy = inf if max_waiting is None else n_threads + max_waiting

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. If the caller is cancelled before it begins, it never runs.

        Raises QueueFull when too many functions wait.
        """
        if self._n_busy >= self._max_busy:
            raise QueueFull(
                f"{self.max_waiting} requests are waiting for {self.name} already; try again later."
            )
        self._n_busy += 1
        future = self._executor.submit(work)
        # A function that has begun occupies its thread to the end, even if its caller has gone.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._free(loop))
        return await asyncio.wrap_future(future)

    def _free(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._decrement)

    def _decrement(self) -> None:
        self._n_busy -= 1
