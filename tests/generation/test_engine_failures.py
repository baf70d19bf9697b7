"""Aborts, deadlines and failures end the requests they concern, and no others."""

import random
import time

import pytest
import torch
from generation.engine_requests import (
    CONFIGS,
    make_request,
    random_gpt,
    run,
    texts,
)

from seq2chat.config import GPTConfig, UserError
from seq2chat.generation.engine import Engine
from seq2chat.generation.request import DeadlinePassed, PromptRead, QueueFull, Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.sequence import Sequence
from seq2chat.generation.tokens import Token


def test_abort_frees_the_slot_with_the_next_step():
    """Other requests do not change."""
    model, prompts = random_gpt(CONFIGS["modern"]), texts(4)
    engine, outputs = Engine(model, n_slot=4), [[] for _ in prompts]
    requests = [
        engine.submit(make_request(p, events)) for p, events in zip(prompts, outputs, strict=True)
    ]
    for _ in range(6):
        engine.step()
    requests[1].abort()
    n_before = len(outputs[1])
    engine.step()
    assert engine.n_running == 3 and len(outputs[1]) == n_before
    waiting = engine.submit(make_request(prompts[0], []))
    waiting.abort()
    engine.run()
    assert engine.n_running == engine.n_waiting == 0 and engine.statistics.aborted == 2
    alone = [run(Engine(model, 1), [prompt])[0] for prompt in prompts]
    assert [events[1:] for events in outputs[2:]] == alone[2:] and outputs[0][1:] == alone[0]


def test_deadlines_and_full_queues():
    engine, events = Engine(random_gpt(CONFIGS["gpt2"]), n_slot=1, max_waiting=2), []
    engine.submit(make_request([1], [], max_tokens=100))
    engine.step()
    engine.submit(make_request([1], events, deadline=time.monotonic() - 1))
    engine.submit(make_request([1], []))
    with pytest.raises(QueueFull):
        engine.submit(make_request([1], []))
    engine.step()
    assert isinstance(events[0], DeadlinePassed) and engine.n_waiting == 1
    engine.fail(RuntimeError("broken"))
    assert not engine.has_work


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "is empty"),
        ({"prompt": [1] * 160}, "shorten it"),
        ({"prompt": [101]}, "not in the vocabulary"),
        ({"prompt": [1], "n": 5}, "n is 5"),
        ({"prompt": [1], "options": {"logit_bias": ((101, 1.0),)}}, "logit_bias"),
    ],
)
def test_what_cannot_run_is_refused(fields, message):
    engine = Engine(random_gpt(CONFIGS["gpt2"]), n_slot=4)
    with pytest.raises(UserError, match=message):
        engine.submit(make_request(fields.pop("prompt"), [], **fields))
    assert not engine.has_work


def test_many_come_and_go_and_each_gets_its_own():
    """Requests of all kinds arrive while others run, some are aborted, and the slots are reused."""
    model, rng = random_gpt(CONFIGS["modern"], torch.float32), random.Random(2)
    engine, runs = Engine(model, n_slot=5), []
    start = texts(1, 120)[0]
    for _ in range(60):
        prompt = start[: rng.randint(1, len(start))] + [
            rng.randrange(101) for _ in range(rng.randint(0, 30))
        ]
        options = {"temperature": rng.choice([0.0, 1.0]), "seed": rng.randrange(9)}
        events = []
        request = make_request(prompt, events, rng.randint(1, 25), options, n=rng.choice([1, 1, 3]))
        runs.append((engine.submit(request), events))
        for _ in range(rng.randint(0, 6)):
            engine.step()
        if rng.random() < 0.2:
            rng.choice(runs)[0].abort()
    engine.run()
    for request, events in runs:
        tokens = [event for event in events if isinstance(event, Token)]
        again = []
        fresh = Engine(model, n_slot=3)
        twin = fresh.submit(make_request(request.prompt, again, n=request.n))
        twin.sampling = request.sampling
        fresh.run()
        for sample in range(request.n):
            mine = [t for t in tokens if t.sample == sample]
            theirs = [t for t in again if isinstance(t, Token) and t.sample == sample]
            assert mine == (theirs[: len(mine)] if request.aborted else theirs)


class Leaving:
    """A client that aborts its request from inside a callback, in the middle of a step, as another
    thread may."""

    def __init__(self, prompt, moment, n):
        self.moment, self.n_read = moment, 0
        on_token = self.on_token if moment == "on_token" else None
        self.request = Request(prompt, SamplingConfig(40), self.emit, n=n, on_token=on_token)

    def emit(self, event):
        self.n_read += isinstance(event, PromptRead)
        if type(event).__name__ == self.moment:
            self.request.abort()

    def on_token(self, token):
        self.request.abort()
        return "", False


@pytest.mark.parametrize("moment", ["PromptRead", "Token", "on_token"])
def test_clients_may_leave_at_any_moment(moment):
    config = GPTConfig("modern", vocab_size=101, context=48, n_layer=1, n_head=2, d_model=16)
    model, prompt = random_gpt(config, torch.float32), [5, 6, 7]
    [alone] = run(Engine(model, 1), [prompt], max_tokens=4)
    engine = Engine(model, n_slot=4)
    for n_prompt in range(1, model.context):
        events = []
        leaving = Leaving(
            [(5 * i + n_prompt) % 101 for i in range(n_prompt)], moment, n=n_prompt % 3 + 1
        )
        engine.submit(leaving.request)
        engine.submit(make_request(prompt, events, max_tokens=4))
        engine.run()
        assert [event for event in events if isinstance(event, Token)] == alone, n_prompt
        assert leaving.n_read == 1 and engine.n_running == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_diverged_weights_end_affected_requests_only(value):
    model, outputs = random_gpt(CONFIGS["modern"]), [[], []]
    with torch.no_grad():
        model.embed_tokens.weight[7] = value
    sampling = SamplingConfig(20, temperature=0.0)
    sound = random_gpt(CONFIGS["modern"])
    logits = model.logits

    def spoiled(hidden):
        """The logits of the sound weights, but for rows that have met token 7."""
        return sound.logits(hidden).where(hidden.isfinite().all(-1, keepdim=True), value)

    model.logits = spoiled
    engine = Engine(model, n_slot=4)
    for prompt, events in zip(([1, 2, 3], [1, 7, 3]), outputs, strict=True):
        engine.submit(Request(prompt, sampling, events.append, n=2))
    engine.run()
    model.logits = logits
    good, bad = outputs
    [alone] = run(Engine(sound, n_slot=4), [[1, 2, 3]])
    assert isinstance(bad[-1], UserError) and "not finite" in str(bad[-1]) and engine.n_running == 0
    assert [e.id for e in good if isinstance(e, Token) and e.sample == 0] == [t.id for t in alone]


def test_nan_keys_are_wiped():
    model = random_gpt(CONFIGS["modern"])
    engine, prompt = Engine(model, n_slot=1), [1, 2, 3]
    [alone] = run(Engine(model, n_slot=1), [prompt])
    embedding = model.embed_tokens.weight
    sound = embedding.detach().clone()
    with torch.no_grad():
        embedding[7] = torch.nan
    [nothing] = run(engine, [[7] * 50])
    with torch.no_grad():
        embedding.copy_(sound)
    assert nothing == [] and run(engine, [prompt]) == [alone]


def test_failing_callback_ends_its_request_only(caplog):
    model, prompt, others = random_gpt(CONFIGS["modern"]), [1, 2, 3], []

    def fail(event):
        raise RuntimeError("the event loop is closed")

    engine = Engine(model, n_slot=5)
    engine.submit(Request(prompt, SamplingConfig(20), fail, n=2))
    engine.submit(make_request(prompt, others))
    engine.run()
    assert others[1:] == run(Engine(model, n_slot=1), [prompt])[0]
    assert "the event loop is closed" in caplog.text and engine.n_running == 0


def test_rebuild_after_a_broken_step(monkeypatch):
    """Running requests end, waiting ones run afterwards."""
    model, prompts = random_gpt(CONFIGS["modern"]), texts(3)
    engine, outputs = Engine(model, n_slot=2), [[] for _ in prompts]
    expected = run(Engine(model, n_slot=2), prompts)
    for prompt, events in zip(prompts, outputs, strict=True):
        engine.submit(make_request(prompt, events))
    for _ in range(7):
        engine.step()
    for stored in (*engine.cache.keys, *engine.cache.values):
        stored.fill_(torch.nan)
    engine.rebuild(RuntimeError("broken"))
    engine.run()
    assert [str(events[-1]) for events in outputs[:2]] == ["broken", "broken"]
    assert outputs[2][1:] == expected[2]  # it was still waiting
    assert run(engine, prompts) == expected


def test_errors_are_sent_if_clearing_the_cache_fails(monkeypatch):
    engine, outputs = Engine(random_gpt(CONFIGS["modern"]), n_slot=2), [[], [], []]
    for events in outputs:
        engine.submit(make_request([1, 2, 3], events))
    engine.step()

    def fail():
        raise MemoryError("no memory")

    monkeypatch.setattr(engine.cache, "clear", fail)
    with pytest.raises(MemoryError):
        engine.fail(RuntimeError("broken"))
    assert [str(events[-1]) for events in outputs] == ["broken"] * 3


@pytest.mark.parametrize("sample", [0, 1])
def test_failed_admission_sends_one_error(sample, monkeypatch):
    engine, events = Engine(random_gpt(CONFIGS["modern"]), n_slot=3), []
    real = engine.slots.reserve

    def fail(request, reuse):
        if engine.n_running == sample:
            raise MemoryError("no memory")
        return real(request, reuse)

    engine.submit(make_request([1, 2, 3], events, n=2))
    monkeypatch.setattr(engine.slots, "reserve", fail)
    with pytest.raises(MemoryError):
        engine.step()
    engine.rebuild(RuntimeError("broken"))
    assert [str(event) for event in events] == ["broken"]
    monkeypatch.undo()
    assert not engine.has_work
    engine.rebuild(RuntimeError("broken again"))
    assert len(events) == 1


class Broken:
    """A constraint that allows all, and fails in the third token of its sample."""

    def __init__(self, where):
        self.where = where
        self.n_accepted = 0

    def bias(self):
        if self.where == "bias" and self.n_accepted == 2:
            raise ValueError("broken bias")
        return torch.zeros(101)

    def accept(self, token):
        self.n_accepted += 1
        if self.where == "accept" and self.n_accepted == 3:
            raise ValueError("broken accept")


@pytest.mark.parametrize("where", ["bias", "accept", "on_token"])
def test_failing_hooks_end_their_request_only(where):
    model, prompt, outputs, others = random_gpt(CONFIGS["modern"]), [1, 2, 3], [], [[], []]
    engine, seen, broken, whole = Engine(model, n_slot=5), [], Broken(where), Broken("")

    def on_token(token):
        seen.append(token)
        if where == "on_token" and len(seen) == 5:  # the third token of the first sample
            raise ValueError("broken on_token")
        return "", False

    engine.submit(make_request(prompt, others[0]))
    engine.submit(
        make_request(prompt, outputs, n=2, on_token=on_token, constraints=[broken, whole])
    )
    engine.submit(make_request(prompt, others[1]))
    engine.run()
    assert (
        str(outputs[-1]) == f"broken {where}"
        and sum(isinstance(event, Exception) for event in outputs) == 1
    )
    assert (
        sum(isinstance(event, Token) for event in outputs) == 4
        and whole.n_accepted == 2
        and engine.n_running == 0
    )
    [alone] = run(Engine(model, n_slot=1), [prompt])
    assert [events[1:] for events in others] == [alone, alone]
    assert run(engine, [prompt]) == [alone]  # and the engine continues


def test_constraint_moves_to_the_device_of_the_logits():
    request = make_request([1], [], constraints=[Broken("")])
    sequence = Sequence(request, 0, 0, 1, random.Random(0), arrival=0)
    assert sequence.constrained(torch.zeros(101, device="meta")).device.type == "meta"
