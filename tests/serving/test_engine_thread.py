"""The one thread that computes, and the errors at its end."""

import time

import pytest

from seq2chat.config import GPTConfig
from seq2chat.generation.engine import Engine
from seq2chat.generation.request import QueueFull, Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.serving.engine_thread import MAX_BREAKS, EngineThread, Stopped


class Panic(BaseException):
    """Like a Rust panic, which is not an Exception either."""


def tiny_engine():
    return Engine(
        GPT(GPTConfig(vocab_size=11, context=8, n_layer=1, n_head=1, d_model=8)), n_slot=1
    )


ERRORS = pytest.mark.parametrize(
    "error", [MemoryError("too little"), Panic("too little")], ids=["error", "panic"]
)


@ERRORS
def test_repeated_breaks_end_the_thread(monkeypatch, caplog, error):
    def broken():
        raise error

    engine, events = tiny_engine(), []
    monkeypatch.setattr(engine, "step", broken)
    thread = EngineThread([engine])
    for _ in range(MAX_BREAKS + 1):
        thread.submit(engine, Request([1], SamplingConfig(1), events.append))
    first, cancelled = (thread.call(lambda: 1) for _ in range(2))
    assert cancelled.cancel()
    later = [thread.call(lambda: 1) for _ in range(MAX_BREAKS + 1)]
    thread.start()
    thread.join(10)
    assert first.result(0) == 1
    with pytest.raises(Stopped, match="The engine broke; its log contains the cause"):
        later[-1].result(0)
    assert [str(event) for event in events] == ["The engine broke; its log contains the cause."] * (
        MAX_BREAKS + 1
    )
    assert "too little" in caplog.text and "in broken" in caplog.text  # the cause and the place
    with pytest.raises(Stopped):
        thread.call(lambda: 1)


@ERRORS
def test_engine_starts_over_after_a_break(monkeypatch, caplog, error):
    """Other engines continue."""
    broken, sound = tiny_engine(), tiny_engine()
    events = {broken: [], sound: []}
    decode, failures = broken._decode, [error]

    def fail_once(rows):
        if failures:
            raise failures.pop()
        return decode(rows)

    monkeypatch.setattr(broken, "_decode", fail_once)
    thread = EngineThread([broken, sound])
    for engine, output in events.items():
        thread.submit(engine, Request([1], SamplingConfig(5), output.append))
    thread.submit(broken, Request([2], SamplingConfig(5), events[broken].append))
    thread.start()
    while not thread.is_idle:
        time.sleep(0.001)
    thread.stop()
    thread.join(10)
    kinds = [type(event).__name__ for event in events[broken]]
    assert (
        kinds == ["PromptRead", "Token", "Stopped", "PromptRead", *["Token"] * 5]
        and thread.error is None
    )
    assert [type(event).__name__ for event in events[sound]] == ["PromptRead", *["Token"] * 5]
    assert "too little" in caplog.text and "too little" not in str(events[broken][2])


@ERRORS
def test_failing_calls_leave_nobody_waiting(caplog, error):
    def work():
        raise error

    thread = EngineThread([])
    thread.start()
    with pytest.raises((MemoryError, RuntimeError), match="too little"):
        thread.call(work).result(10)
    assert thread.call(lambda: 1).result(10) == 1
    thread.stop()
    thread.join(10)


def test_calls_that_wait_are_bounded():
    thread = EngineThread([])
    for _ in range(256):
        thread.call(int)
    with pytest.raises(QueueFull, match="256 calls are waiting"):
        thread.call(int)
