"""The one thread that computes, and what it tells at its end."""

import pytest

from seq2chat.serving.worker import Stopped, Worker


class Broken:
    """An engine that has something to do and cannot; `told` is what it tells everyone who waits."""

    has_work, told = True, None

    def step(self):
        raise MemoryError("no more of it")

    def fail(self, error):
        self.told = error


def test_a_cancelled_call_keeps_no_one_from_being_told_of_the_end():
    engine = Broken()
    worker = Worker([engine])
    first, cancelled, waiting = (worker.call(lambda: 1) for _ in range(3))
    assert cancelled.cancel()
    worker.start()
    worker.join(10)
    assert first.result(0) == 1
    with pytest.raises(Stopped, match="MemoryError"):
        waiting.result(0)
    assert isinstance(engine.told, Stopped)
    with pytest.raises(Stopped):
        worker.call(lambda: 1)
