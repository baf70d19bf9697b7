"""Stopping on SIGINT and SIGTERM within about two seconds, whatever a run is doing.

A training step ends before the run stops, so that nothing is lost. Long phases that change no
state, such as validation, sampling and rollouts, are left at once. Preparation has nothing to lose
and is ended hard where it must.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.5  # seconds until a call into C that does not return is ended

_interruptible = False
_stop: threading.Event | None = None


class Stopped(BaseException):
    """Raised inside `interruptible` when a signal arrives. No `except Exception` of a user's code
    catches it."""


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets; a second signal gets the default
    behavior.

    Inside `interruptible` the first signal raises `Stopped` as well.
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
    """Let a signal leave the body at once, by `Stopped`, with torch's random state as it was
    before."""
    global _interruptible
    if _stop is not None and _stop.is_set():
        raise Stopped  # the signal came before
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
    """Make both signals raise `KeyboardInterrupt` in the body, and end the process if that takes
    too long.

    The last words are then `farewell`.

    Python handles a signal only when a call into C returns, and training a tokenizer is one long
    call.
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
        theirs.close()  # ends the thread, which then reads nothing
        thread.join()
        ours.close()
