"""The one thread that computes.

It steps the engines of all models in turn, so that models never compete for cores.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from seq2chat.generation.engine import Engine
from seq2chat.generation.request import QueueFull, Request

MAX_CALLS = 256  # that may wait

# If engines break more often than this within this time, the thread ends.
MAX_BREAKS = 5
BREAK_SECONDS = 60.0


class Stopped(RuntimeError):
    """Raised when the server cannot answer, because it is stopping or because an engine broke."""


class EngineThread(threading.Thread):
    """Steps `engines` while they have work, and runs the functions given to `call` in between.

    When a step fails, the running requests of that engine fail, and the engine starts over with an
    empty cache. Other engines are not affected. If engines break again and again, the thread ends:
    all requests fail, `error` is the cause, and nothing more is accepted.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        super().__init__(name="engine", daemon=True)
        self.engines = engines
        self.error: BaseException | None = None
        self._break_times: deque[float] = deque(maxlen=MAX_BREAKS)
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._stopping = False

    @property
    def is_idle(self) -> bool:
        """True if nothing runs or waits."""
        return not self._calls and not any(engine.has_work for engine in self.engines)

    def submit(self, engine: Engine, request: Request) -> None:
        """Submit `request` to `engine`. Raises the errors of `Engine.submit`, and Stopped."""
        with self._wake:
            self._check_running()
            engine.submit(request)
            self._wake.notify()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Return the future result of `work`, which runs in this thread.

        Raises Stopped, and QueueFull when too many calls wait.
        """
        with self._wake:
            self._check_running()
            if len(self._calls) >= MAX_CALLS:
                raise QueueFull(f"{MAX_CALLS} calls are waiting already; try again later.")
            future: Future[Any] = Future()
            self._calls.append((work, future))
            self._wake.notify()
        return future

    def stop(self) -> None:
        """End the thread after its current step. Waiting requests and calls fail with Stopped."""
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
                        self._step(engine)
        except BaseException as error:
            self.error = error
            logging.getLogger("seq2chat").exception("The engine broke for good.")
        self._fail(self._stopped())

    def _step(self, engine: Engine) -> None:
        """Step the engine, and rebuild it if that fails.

        Raises the error instead if there were too many of them lately.
        """
        try:
            engine.step()
        except BaseException as error:  # a Rust panic is not an Exception
            now = time.monotonic()
            is_full = len(self._break_times) == MAX_BREAKS
            if is_full and now - self._break_times[0] < BREAK_SECONDS:
                raise
            self._break_times.append(now)
            logging.getLogger("seq2chat").error("The engine broke and starts over.", exc_info=error)
            engine.rebuild(
                Stopped("The engine broke and has started over; send the request again.")
            )

    def _wait(self) -> bool:
        """Wait for work or the end. Return True if there is work."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or not self.is_idle)
            return not self._stopping

    def _check_running(self) -> None:
        if self._stopping or self.error is not None:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        """Return the error for clients. The cause of a break is for the log only."""
        if self.error is None:
            return Stopped("The server is stopping.")
        return Stopped("The engine broke; its log contains the cause.")

    def _run_call(self, work: Callable[[], Any], future: "Future[Any]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        # A Rust panic. asyncio would not pass it on as an error of the request.
        except BaseException as error:
            logging.getLogger("seq2chat").error("A computation panicked.", exc_info=error)
            future.set_exception(RuntimeError(f"A computation panicked: {error}"))

    def _fail(self, error: Exception) -> None:
        with self._wake:
            self._stopping = True
            calls = self._calls
            self._calls = deque()
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        for engine in self.engines:
            try:
                engine.fail(error)
            # An engine that cannot be emptied must not keep the clients of the others waiting.
            except Exception:
                logging.getLogger("seq2chat").exception(
                    "The cache of an engine could not be emptied."
                )
