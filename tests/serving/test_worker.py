"""The one thread that computes, and what it tells at its end."""

import pytest

from seq2chat.config import GPTConfig
from seq2chat.generation.engine import Engine
from seq2chat.generation.request import QueueFull, Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.serving.worker import Stopped, Worker


class Panic(BaseException):
    """As the one of Rust, which is no Exception either."""


@pytest.mark.parametrize("error", [MemoryError("no more of it"), Panic("no more of it")], ids=["error", "panic"])
def test_a_cancelled_call_keeps_no_one_from_being_told_of_the_end(monkeypatch, caplog, error):
    def broken():
        raise error

    engine, told = Engine(GPT(GPTConfig(vocab_size=11, context=8, n_layer=1, n_head=1, d_model=8)), n_slot=1), []
    monkeypatch.setattr(engine, "step", broken)
    worker = Worker([engine])
    worker.submit(engine, Request([1], SamplingConfig(1), told.append))
    first, cancelled, waiting = (worker.call(lambda: 1) for _ in range(3))
    assert cancelled.cancel()
    worker.start()
    worker.join(10)
    assert first.result(0) == 1
    with pytest.raises(Stopped, match="The engine broke; its log says why"):
        waiting.result(0)
    assert isinstance(told[0], Stopped) and "no more of it" not in str(told[0])
    assert "no more of it" in caplog.text and "in broken" in caplog.text  # why, and where
    with pytest.raises(Stopped):
        worker.call(lambda: 1)


def test_calls_that_wait_are_bounded():
    worker = Worker([])
    for _ in range(256):
        worker.call(int)
    with pytest.raises(QueueFull, match="256 calls are waiting"):
        worker.call(int)
