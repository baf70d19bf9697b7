"""Stopping on SIGINT and SIGTERM within about two seconds, in every phase of a run.

A training step is completed before the run stops, so that nothing is lost. Long phases that change
no state, such as validation, sampling and rollouts, are interrupted. Preparation has nothing to
lose, so the process is ended if necessary.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seq2chat.training.processes import world_size

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.5  # seconds until a process inside a long call into C is ended

_interruptible = False
_stop: threading.Event | None = None


class Stopped(BaseException):
    """Raised inside `interruptible` when a signal arrives. It is not an `Exception`, so that a
    user's reward function can't catch it by accident."""


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets. A second signal gets the default
    behavior.

    Inside `interruptible`, the first signal also raises `Stopped`.
    """
    global _stop
    stop = threading.Event()
    outer = _stop
    _stop = stop
    before = {s: signal.getsignal(s) for s in SIGNALS}

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])
        if _interruptible:
            raise Stopped

    for s in before:
        signal.signal(s, on_signal)
    try:
        yield stop
    finally:
        _stop = outer
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal interrupt the body with `Stopped`, and restore torch's random state then.

    One of several processes finishes the body. The loop stops them together after it.
    """
    global _interruptible
    if world_size() > 1:  # the others would wait for one that leaves the body
        yield
        return
    if _stop is not None and _stop.is_set():
        raise Stopped  # the signal arrived earlier
    state = torch.get_rng_state()
    outer = _interruptible
    _interruptible = True
    try:
        yield
    except Stopped:
        torch.set_rng_state(state)
        raise
    finally:
        _interruptible = outer


@contextmanager
def nothing_to_lose(farewell: str = "Stopped.") -> Iterator[None]:
    """Make both signals raise `KeyboardInterrupt` in the body, or print `farewell` and end the
    process if that takes too long.

    Python handles a signal only when a call into C returns, and training a tokenizer is one long
    call. A thread therefore waits for the signal on the wakeup file descriptor.
    """
    before = {s: signal.getsignal(s) for s in SIGNALS}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    done = threading.Event()

    def watch() -> None:
        if ours.recv(1) and not done.wait(PATIENCE):
            print(farewell, file=sys.stderr, flush=True)
            os._exit(130)

    thread = threading.Thread(target=watch, daemon=True)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for s in SIGNALS:
        signal.signal(s, signal.default_int_handler)
    thread.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(wakeup)
        for s, handler in before.items():
            signal.signal(s, handler)
        theirs.close()  # the thread reads an empty string and ends
        thread.join()
        ours.close()
