"""The one thread that computes: it steps the engines of all models in turn, so that they never compete for cores."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from seq2chat.generation.engine import Engine
from seq2chat.generation.request import QueueFull, Request

MOST_CALLS = 256  # that may wait


class Stopped(RuntimeError):
    """The thread that computes has ended, by itself or because it was asked to."""


class Worker(threading.Thread):
    """Steps `engines` while they have work, and runs what `call` is given between the steps.

    When a step fails, everything that waits fails with it, the log and `error` say why, and nothing is taken any more:
    the state of an engine that broke in the middle of a step is not known.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        super().__init__(name="engine", daemon=True)
        self.engines = engines
        self.error: BaseException | None = None
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._stopping = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._calls and not any(engine.has_work for engine in self.engines)

    def submit(self, engine: Engine, request: Request) -> None:
        """Hand `request` to `engine`. Raises what `Engine.submit` does, and Stopped."""
        with self._wake:
            self._check()
            engine.submit(request)
            self._wake.notify()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Return the future result of `work`, which runs in this thread. Raises Stopped, and QueueFull when too many
        calls wait."""
        with self._wake:
            self._check()
            if len(self._calls) >= MOST_CALLS:
                raise QueueFull(f"{MOST_CALLS} calls are waiting already; try again later.")
            future: Future[Any] = Future()
            self._calls.append((work, future))
            self._wake.notify()
        return future

    def stop(self) -> None:
        """End after the present step; what still waits fails with Stopped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def run(self) -> None:
        try:
            while self._wait():
                if self._calls:
                    work, future = self._calls.popleft()
                    self._run_call(work, future)
                for engine in self.engines:
                    if engine.has_work:
                        engine.step()
        except BaseException as error:  # what a panic of Rust raises is no Exception
            self.error = error
            logging.getLogger("seq2chat").exception("The engine broke; start the server again.")
        self._fail(self._stopped())

    def _wait(self) -> bool:
        """Wait for work; whether there is some, rather than the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or not self.is_idle)
            return not self._stopping

    def _check(self) -> None:
        if self._stopping or self.error is not None:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        """What clients are told; why it broke is for the log."""
        return Stopped("The server is stopping." if self.error is None else "The engine broke; its log says why.")

    def _run_call(self, work: Callable[[], Any], future: "Future[Any]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    def _fail(self, error: Exception) -> None:
        with self._wake:
            self._stopping = True
            calls, self._calls = self._calls, deque()
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        for engine in self.engines:
            engine.fail(error)
