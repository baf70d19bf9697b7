"""The engine gives each request what it would get alone, whatever else runs."""

import random
import subprocess
import sys
import time

import pytest
import torch

from seq2chat.config import GPTConfig, UserError
from seq2chat.generation.decode import generate
from seq2chat.generation.engine import CHUNK, Engine
from seq2chat.generation.request import DeadlinePassed, PromptRead, QueueFull, Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.score import score
from seq2chat.generation.sequence import Sequence
from seq2chat.generation.tokens import Token
from seq2chat.models.folder import save_model
from seq2chat.models.gpt import GPT

SHAPE = {"vocab_size": 101, "context": 160, "n_layer": 3, "n_head": 4, "d_model": 64}
CONFIGS = {
    "gpt2": GPTConfig("gpt2", **SHAPE),
    "banded": GPTConfig("gpt2", window=7, **SHAPE),
    "modern": GPTConfig("modern", n_kv_head=2, **SHAPE),
}
GREEDY = {"temperature": 0.0}
DRAWN = {
    "temperature": 1.3,
    "top_p": 0.9,
    "seed": 3,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
}
NATIVE_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
FORMATS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def random_gpt(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = GPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def texts(n=8, longest=100):
    chance = random.Random(1)
    return [[chance.randrange(101) for _ in range(chance.randint(1, longest))] for _ in range(n)]


def asked(prompt, told, max_tokens=20, options=GREEDY, **fields):
    return Request(
        list(prompt), SamplingConfig(max_tokens, **options), told.append, **{"logprobs": 3} | fields
    )


def run(engine, prompts, **kwargs):
    """The tokens of each prompt, all at once."""
    told = [[] for _ in prompts]
    for prompt, events in zip(prompts, told, strict=True):
        engine.submit(asked(prompt, events, **kwargs))
    engine.run()
    return [[event for event in events if isinstance(event, Token)] for events in told]


@each_config
@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_engine_equals_its_plain_twin(config, options):
    model, prompts = random_gpt(config), texts()
    engine = Engine(model, n_slot=5)
    for prompt, tokens in zip(prompts, run(engine, prompts, options=options), strict=True):
        [[twin]] = generate(model, [prompt], SamplingConfig(20, **options))
        assert [t.id for t in tokens] == twin.tokens and tokens[-1].finish == twin.finish
        assert [t.logprob for t in tokens] == pytest.approx(twin.logprobs, abs=1e-9)


def test_log_probabilities_are_computed_on_request():
    prompt = [1, 2, 3]
    engine = Engine(random_gpt(CONFIGS["gpt2"]), n_slot=4)
    tokens = {}
    for logprobs in (None, 0, 2):
        [tokens[logprobs]] = run(engine, [prompt], options=DRAWN, logprobs=logprobs)
    assert all(t.logprob is None and not t.top for t in tokens[None])
    assert all(t.logprob is not None and not t.top for t in tokens[0])
    assert [t.logprob for t in tokens[2]] == [t.logprob for t in tokens[0]]
    assert all(len(t.top) == 2 for t in tokens[2])


def test_greedy_tokens_are_those_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    for name, config in CONFIGS.items():
        model = random_gpt(config, torch.float32)
        save_model(model, tmp_path / name, pad_token_id=0)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        prompts = texts(4)
        for prompt, tokens in zip(prompts, run(Engine(model, 4), prompts), strict=True):
            ids = torch.tensor([prompt])
            options = {
                "attention_mask": torch.ones_like(ids),
                "pad_token_id": 0,
                "do_sample": False,
            }
            with torch.inference_mode():
                same = theirs.generate(ids, max_new_tokens=20, min_new_tokens=20, **options)[
                    0, len(prompt) :
                ]
            assert [t.id for t in tokens] == same.tolist()


@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_together_is_alone_to_the_last_bit(dtype, options):
    if dtype == torch.bfloat16 and not NATIVE_BF16:
        pytest.skip("this processor has no bfloat16 products of its own")
    for config in CONFIGS.values():
        model, prompts = random_gpt(config, dtype), texts()
        together = run(Engine(model, n_slot=7), prompts, options=options)
        alone = [run(Engine(model, n_slot=1), [prompt], options=options)[0] for prompt in prompts]
        assert together == alone  # tokens, log probabilities and alternatives, exactly


def test_prompts_side_by_side_are_read_in_one_pass(monkeypatch):
    """Also when one of them ends with its first token, so that another takes its slot in the middle
    of it."""
    model, prompts = random_gpt(CONFIGS["modern"]), [[i + 1] * (2 * CHUNK) for i in range(4)]
    shapes, real = [], model.hidden_step
    monkeypatch.setattr(
        model, "hidden_step", lambda t, s: shapes.append(tuple(t.shape)) or real(t, s)
    )
    engine, told = Engine(model, n_slot=4, budget=4 * CHUNK), [[] for _ in prompts]
    for i, (prompt, events) in enumerate(zip(prompts, told, strict=True)):
        engine.submit(asked(prompt, events, max_tokens=1 if i == 1 else 9))
    engine.run()
    assert shapes[:2] == [(4, CHUNK)] * 2 and all(n == 1 for _, n in shapes[2:])
    for i, (prompt, events) in enumerate(zip(prompts, told, strict=True)):
        [alone] = run(Engine(model, n_slot=4), [prompt], max_tokens=1 if i == 1 else 9)
        assert events[1:] == alone


COMPILED = """
import random, torch
from seq2chat.config import GPTConfig
from seq2chat.generation.engine import Engine, Request, Token
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.serving.served_model import quantize

def make(seed, dtype, quantized=False):
    torch.manual_seed(seed)
    shape = GPTConfig(
        "modern", vocab_size=101, context=160, n_layer=1, n_head=4, n_kv_head=2, d_model=64
    )
    model = GPT(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.eval().to(dtype)
    if quantized:
        quantize(model)
    return model

def compiled(model):
    engine = Engine(model, 8)
    engine.compile()
    engine._token_pass.run = engine._token_pass.compiled  # also where it happens to be slower
    return engine

chance = random.Random(1)
prompts = [[chance.randrange(101) for _ in range(chance.randint(1, 120))] for _ in range(6)]

def run(engine, prompts):
    told = [[] for _ in prompts]
    for prompt, events in zip(prompts, told):
        engine.submit(Request(prompt, SamplingConfig(20, 0.0), events.append, logprobs=2))
    engine.run()
    return [[event for event in events if isinstance(event, Token)] for events in told]

# Models beside each other, as a server has them: two of one shape, and others in other formats.
models = [make(0, torch.float32), make(1, torch.float32)]
if torch.ops.mkldnn._is_mkldnn_bf16_supported():
    models += [make(2, torch.bfloat16), make(3, torch.bfloat16, quantized=True)]
engines = [compiled(model) for model in models]
for model, engine in zip(models, engines):
    together, plain = run(engine, prompts), run(Engine(model, 8), prompts)
    assert together == [run(engine, [prompt])[0] for prompt in prompts], "not what each gets alone"
    for row, twin in zip(together, plain):
        if next(model.parameters()).dtype == torch.float32:
            assert [t.id for t in row] == [t.id for t in twin], "not the plain tokens"
            assert max(abs(t.logprob - u.logprob) for t, u in zip(row, twin)) < 1e-4
        else:
            assert abs(row[0].logprob - twin[0].logprob) < 0.2, "not the plain model"
"""


def test_compiled_together_is_alone_to_the_last_bit():
    """In a process without the type checks, which torch.compile cannot read."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
def test_a_cached_prompt_is_a_cold_one_to_the_last_bit(dtype):
    if dtype == torch.bfloat16 and not NATIVE_BF16:
        pytest.skip("this processor has no bfloat16 products of its own")
    model, [start] = random_gpt(CONFIGS["modern"], dtype), texts(1, 1)
    start = start * 70
    engine, cold = Engine(model, n_slot=3), []
    run(engine, [start])
    for end in ([1, 2, 3], [4] * 40, [5]):
        told = []
        engine.submit(asked(start + end, told))
        engine.run()
        assert told[0].cached == 2 * CHUNK
        cold = run(Engine(model, n_slot=3), [start + end])[0]
        assert told[1:] == cold


def test_only_equal_prefixes_are_reused():
    """Only up to the first difference, and only under the same salt."""
    model, prompt = random_gpt(CONFIGS["gpt2"]), list(range(100))
    engine = Engine(model, n_slot=3)
    run(engine, [prompt], salt="one")
    cases = [
        (prompt, "two", 0),  # another's prompt is not seen
        (prompt, "one", 3 * CHUNK),
        (prompt[: 2 * CHUNK], "one", CHUNK),  # one token is always left to read
        ([7, *prompt[1:]], "one", 0),
        ([*prompt[:40], 7, *prompt[41:]], "one", CHUNK),
    ]
    for tokens, salt, cached in cases:
        told = []
        engine.submit(asked(tokens, told, salt=salt))
        engine.run()
        assert told[0].cached == cached


def test_the_size_of_the_budget_changes_nothing():
    model, prompts = random_gpt(CONFIGS["banded"], torch.float32), texts()
    assert run(Engine(model, 4, budget=1), prompts) == run(Engine(model, 4, budget=4096), prompts)


def test_long_prompts_do_not_stall_running_answers():
    engine = Engine(random_gpt(CONFIGS["gpt2"]), n_slot=2, budget=1)
    told, long = [], []
    engine.submit(asked([1], told))
    engine.step()
    engine.submit(asked(list(range(100)), long))
    for _ in range(3):  # three of the four chunks of the long prompt
        before = len(told)
        engine.step()
        assert len(told) == before + 1 and not long
    engine.step()
    assert isinstance(long[0], PromptRead)


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_forks_are_the_samples_of_the_twin(options):
    model, prompt = random_gpt(CONFIGS["modern"]), texts(1)[0]
    told, other = [], []
    engine = Engine(model, n_slot=6)
    engine.submit(asked(texts(3)[2], other))
    engine.submit(asked(prompt, told, options=options, n=4))
    engine.run()
    [twins] = generate(model, [prompt], SamplingConfig(20, **options), n=4)
    for sample, twin in enumerate(twins):
        assert [t.id for t in told if isinstance(t, Token) and t.sample == sample] == twin.tokens


def test_options_of_one_request_do_not_touch_another():
    model, prompt = random_gpt(CONFIGS["gpt2"]), [1, 2, 3]
    engine, told = Engine(model, 8), []
    likeliest = run(engine, [prompt])[0][0].id
    banned = {"temperature": 0.0, "logit_bias": ((likeliest, -100.0),)}
    several = [
        GREEDY,
        banned,
        DRAWN,
        {"top_k": 1},
        {"min_p": 1.0},
        {"presence_penalty": 2.0, "seed": 1},
    ]
    rows = [[] for _ in several]
    for options, told in zip(several, rows, strict=True):
        engine.submit(asked(prompt, told, options=options))
    engine.run()
    ids = [[t.id for t in row if isinstance(t, Token)] for row in rows]
    assert ids[0][0] == likeliest and likeliest not in ids[1][:1]
    assert ids[3] == ids[0] == ids[4]
    assert ids[2] == [t.id for t in run(Engine(model, 1), [prompt], options=DRAWN)[0]]
    assert len(told) == 21


def test_abort_frees_the_slot_with_the_next_step():
    """Other requests do not change."""
    model, prompts = random_gpt(CONFIGS["modern"]), texts(4)
    engine, told = Engine(model, n_slot=4), [[] for _ in prompts]
    requests = [engine.submit(asked(p, events)) for p, events in zip(prompts, told, strict=True)]
    for _ in range(6):
        engine.step()
    requests[1].abort()
    n_before = len(told[1])
    engine.step()
    assert engine.n_running == 3 and len(told[1]) == n_before
    waiting = engine.submit(asked(prompts[0], []))
    waiting.abort()
    engine.run()
    assert engine.n_running == engine.n_waiting == 0 and engine.statistics.aborted == 2
    alone = [run(Engine(model, 1), [prompt])[0] for prompt in prompts]
    assert [events[1:] for events in told[2:]] == alone[2:] and told[0][1:] == alone[0]


def test_hook_end_token_and_context_end_an_answer():
    model, prompt = random_gpt(CONFIGS["gpt2"]), [1, 2, 3]
    engine = Engine(model, 2)
    whole = [t.id for t in run(engine, [prompt], max_tokens=1000)[0]]
    assert len(prompt) + len(whole) == model.context
    [tokens] = run(engine, [prompt], end_tokens=[whole[4]])
    first = whole.index(whole[4])
    assert [t.id for t in tokens] == whole[: first + 1] and tokens[-1].finish == "stop"
    seen = []
    [tokens] = run(engine, [prompt], on_token=lambda t: ("", seen.append(t.id) or len(seen) == 3))
    assert [t.id for t in tokens] == seen == whole[:3] and tokens[-1].finish == "stop"


def test_the_prompt_is_scored_as_forced_decoding_does():
    model, prompt = random_gpt(CONFIGS["banded"]), texts(6)[4]
    engine, told = Engine(model, 2), []
    run(engine, [prompt])  # the cache would know the prompt, but not its scores
    engine.submit(asked(prompt, told, max_tokens=1, prompt_logprobs=True))
    engine.run()
    read = told[0]
    assert read.cached == 0 and read.logprobs[0] is None and len(read.logprobs) == len(prompt)
    assert read.logprobs[1:] == pytest.approx(score(model, [prompt[:1]], [prompt[1:]])[0], abs=1e-9)
    for logprob, top in zip(read.logprobs[1:], read.tops[1:], strict=True):
        assert len(top) == 3 and top[0][1] >= max(logprob, top[1][1])


def test_deadlines_and_full_queues():
    engine, told = Engine(random_gpt(CONFIGS["gpt2"]), n_slot=1, max_waiting=2), []
    engine.submit(asked([1], [], max_tokens=100))
    engine.step()
    engine.submit(asked([1], told, deadline=time.monotonic() - 1))
    engine.submit(asked([1], []))
    with pytest.raises(QueueFull):
        engine.submit(asked([1], []))
    engine.step()
    assert isinstance(told[0], DeadlinePassed) and engine.n_waiting == 1
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
        engine.submit(asked(fields.pop("prompt"), [], **fields))
    assert not engine.has_work


def test_many_come_and_go_and_each_gets_its_own():
    """Requests of all kinds arrive while others run, some are aborted, and the slots are reused."""
    model, chance = random_gpt(CONFIGS["modern"], torch.float32), random.Random(2)
    engine, runs = Engine(model, n_slot=5), []
    start = texts(1, 120)[0]
    for _ in range(60):
        prompt = start[: chance.randint(1, len(start))] + [
            chance.randrange(101) for _ in range(chance.randint(0, 30))
        ]
        options = {"temperature": chance.choice([0.0, 1.0]), "seed": chance.randrange(9)}
        told = []
        request = asked(prompt, told, chance.randint(1, 25), options, n=chance.choice([1, 1, 3]))
        runs.append((engine.submit(request), told))
        for _ in range(chance.randint(0, 6)):
            engine.step()
        if chance.random() < 0.2:
            chance.choice(runs)[0].abort()
    engine.run()
    for request, told in runs:
        tokens = [event for event in told if isinstance(event, Token)]
        again = []
        fresh = Engine(model, n_slot=3)
        twin = fresh.submit(asked(request.prompt, again, n=request.n))
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
        engine.submit(asked(prompt, events, max_tokens=4))
        engine.run()
        assert [event for event in events if isinstance(event, Token)] == alone, n_prompt
        assert leaving.n_read == 1 and engine.n_running == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_diverged_weights_end_affected_requests_only(value):
    model, events = random_gpt(CONFIGS["modern"]), [[], []]
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
    for prompt, told in zip(([1, 2, 3], [1, 7, 3]), events, strict=True):
        engine.submit(Request(prompt, sampling, told.append, n=2))
    engine.run()
    model.logits = logits
    good, bad = events
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
    engine.submit(asked(prompt, others))
    engine.run()
    assert others[1:] == run(Engine(model, n_slot=1), [prompt])[0]
    assert "the event loop is closed" in caplog.text and engine.n_running == 0


def test_rebuild_after_a_broken_step(monkeypatch):
    """Running requests end, waiting ones run afterwards."""
    model, prompts = random_gpt(CONFIGS["modern"]), texts(3)
    engine, events = Engine(model, n_slot=2), [[] for _ in prompts]
    expected = run(Engine(model, n_slot=2), prompts)
    for prompt, told in zip(prompts, events, strict=True):
        engine.submit(asked(prompt, told))
    for _ in range(7):
        engine.step()
    for stored in (*engine.cache.keys, *engine.cache.values):
        stored.fill_(torch.nan)
    engine.rebuild(RuntimeError("broken"))
    engine.run()
    assert [str(told[-1]) for told in events[:2]] == ["broken", "broken"]
    assert events[2][1:] == expected[2]  # it was still waiting
    assert run(engine, prompts) == expected


def test_errors_are_sent_if_clearing_the_cache_fails(monkeypatch):
    engine, events = Engine(random_gpt(CONFIGS["modern"]), n_slot=2), [[], [], []]
    for told in events:
        engine.submit(asked([1, 2, 3], told))
    engine.step()

    def fail():
        raise MemoryError("no memory")

    monkeypatch.setattr(engine.cache, "clear", fail)
    with pytest.raises(MemoryError):
        engine.fail(RuntimeError("broken"))
    assert [str(told[-1]) for told in events] == ["broken"] * 3


@pytest.mark.parametrize("sample", [0, 1])
def test_failed_admission_sends_one_error(sample, monkeypatch):
    engine, told = Engine(random_gpt(CONFIGS["modern"]), n_slot=3), []
    real = engine.slots.reserve

    def fail(request, reuse):
        if engine.n_running == sample:
            raise MemoryError("no memory")
        return real(request, reuse)

    engine.submit(asked([1, 2, 3], told, n=2))
    monkeypatch.setattr(engine.slots, "reserve", fail)
    with pytest.raises(MemoryError):
        engine.step()
    engine.rebuild(RuntimeError("broken"))
    assert [str(event) for event in told] == ["broken"]
    monkeypatch.undo()
    assert not engine.has_work
    engine.rebuild(RuntimeError("broken again"))
    assert len(told) == 1


class Broken:
    """A constraint that allows all, and fails in the third token of its sample."""

    def __init__(self, where):
        self.where, self.said = where, 0

    def bias(self):
        if self.where == "bias" and self.said == 2:
            raise ValueError("broken bias")
        return torch.zeros(101)

    def accept(self, token):
        self.said += 1
        if self.where == "accept" and self.said == 3:
            raise ValueError("broken accept")


@pytest.mark.parametrize("where", ["bias", "accept", "on_token"])
def test_failing_hooks_end_their_request_only(where):
    model, prompt, told, others = random_gpt(CONFIGS["modern"]), [1, 2, 3], [], [[], []]
    engine, seen, broken, whole = Engine(model, n_slot=5), [], Broken(where), Broken("")

    def on_token(token):
        seen.append(token)
        if where == "on_token" and len(seen) == 5:  # the third token of the first sample
            raise ValueError("broken on_token")
        return "", False

    engine.submit(asked(prompt, others[0]))
    engine.submit(asked(prompt, told, n=2, on_token=on_token, constraints=[broken, whole]))
    engine.submit(asked(prompt, others[1]))
    engine.run()
    assert (
        str(told[-1]) == f"broken {where}"
        and sum(isinstance(event, Exception) for event in told) == 1
    )
    assert (
        sum(isinstance(event, Token) for event in told) == 4
        and whole.said == 2
        and engine.n_running == 0
    )
    [alone] = run(Engine(model, n_slot=1), [prompt])
    assert [events[1:] for events in others] == [alone, alone]
    assert run(engine, [prompt]) == [alone]  # and the engine goes on


def test_constraint_moves_to_the_device_of_the_logits():
    request = asked([1], [], constraints=[Broken("")])
    sequence = Sequence(request, 0, 0, 1, random.Random(0), arrival=0)
    assert sequence.constrained(torch.zeros(101, device="meta")).device.type == "meta"
