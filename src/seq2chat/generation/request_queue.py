"""The requests that wait for slots, in their order of arrival."""

import threading
from collections import deque

from seq2chat.generation.request import QueueFull, Request


class RequestQueue:
    """A queue of at most `max_waiting` requests that several threads may use."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._requests: deque[Request] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: Request) -> None:
        """Append a request. Raises QueueFull when `max_waiting` are there already."""
        with self._lock:
            if len(self._requests) >= self.max_waiting:
                raise QueueFull(
                    f"{self.max_waiting} requests are waiting already; try again later."
                )
            self._requests.append(request)

    def take(self, n_free: int) -> Request | None:
        """Remove and return the first request if its samples fit in `n_free` slots, else None.

        Later requests never overtake it, so a request for many samples cannot starve.
        """
        with self._lock:
            if not self._requests or self._requests[0].n > n_free:
                return None
            return self._requests.popleft()

    def take_ended(self, now: float) -> list[Request]:
        """Remove and return the requests that were aborted or are late at the time `now`."""
        with self._lock:
            ended = [r for r in self._requests if r.aborted or r.is_late(now)]
            for request in ended:
                self._requests.remove(request)
        return ended

    def take_all(self) -> list[Request]:
        """Remove and return all requests."""
        with self._lock:
            requests = list(self._requests)
            self._requests.clear()
        return requests
