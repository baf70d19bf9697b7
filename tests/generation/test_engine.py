"""The engine gives each request the tokens it would get alone."""

import pytest
import torch
from generation.engine_requests import (
    CONFIGS,
    DRAWN,
    FORMATS,
    GREEDY,
    NATIVE_BF16,
    each_config,
    make_request,
    random_gpt,
    run,
    texts,
)

from seq2chat.generation.decode import generate
from seq2chat.generation.engine import CHUNK, Engine
from seq2chat.generation.request import PromptRead
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.score import score
from seq2chat.generation.tokens import Token
from seq2chat.models.folder import save_model
from seq2chat.serving.served_model import quantize


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
    engine, outputs = Engine(model, n_slot=4, budget=4 * CHUNK), [[] for _ in prompts]
    for i, (prompt, events) in enumerate(zip(prompts, outputs, strict=True)):
        engine.submit(make_request(prompt, events, max_tokens=1 if i == 1 else 9))
    engine.run()
    assert shapes[:2] == [(4, CHUNK)] * 2 and all(n == 1 for _, n in shapes[2:])
    for i, (prompt, events) in enumerate(zip(prompts, outputs, strict=True)):
        [alone] = run(Engine(model, n_slot=4), [prompt], max_tokens=1 if i == 1 else 9)
        assert events[1:] == alone


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
def test_compiled_together_is_alone_to_the_last_bit(dtype, quantized):
    model, prompts = random_gpt(CONFIGS["modern"], dtype), texts(6)
    if quantized:
        quantize(model)
    engine = Engine(model, n_slot=8)
    engine.compile()
    together = run(engine, prompts, options=GREEDY)
    assert together == [run(engine, [prompt], options=GREEDY)[0] for prompt in prompts]
    plain = run(Engine(model, n_slot=8), prompts, options=GREEDY)
    for row, twin in zip(together, plain, strict=True):
        if dtype == torch.float32:
            assert [t.id for t in row] == [t.id for t in twin]
            assert [t.logprob for t in row] == pytest.approx([t.logprob for t in twin], abs=1e-4)
        else:
            assert row[1].logprob == pytest.approx(twin[1].logprob, abs=0.2)


def test_a_pass_that_cannot_be_compiled_stays_plain(monkeypatch):
    """As on a GPU, where torch.compile fails at the first pass."""

    def fail(*arguments):
        raise RuntimeError("no compiler")

    model, prompts = random_gpt(CONFIGS["modern"]), texts(2)
    engine = Engine(model, n_slot=4)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, dynamic: fail)
        patch.setattr(type(model), "device", property(lambda model: torch.device("meta")))
        with pytest.raises(RuntimeError, match="no compiler"):
            engine.compile()
    expected = run(Engine(model, n_slot=4), prompts, options=GREEDY)
    assert run(engine, prompts, options=GREEDY) == expected


@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
def test_a_cached_prompt_is_a_cold_one_to_the_last_bit(dtype):
    if dtype == torch.bfloat16 and not NATIVE_BF16:
        pytest.skip("this processor has no bfloat16 products of its own")
    model, [start] = random_gpt(CONFIGS["modern"], dtype), texts(1, 1)
    start = start * 70
    engine, cold = Engine(model, n_slot=3), []
    run(engine, [start])
    for end in ([1, 2, 3], [4] * 40, [5]):
        events = []
        engine.submit(make_request(start + end, events))
        engine.run()
        assert events[0].cached == 2 * CHUNK
        cold = run(Engine(model, n_slot=3), [start + end])[0]
        assert events[1:] == cold


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
        events = []
        engine.submit(make_request(tokens, events, salt=salt))
        engine.run()
        assert events[0].cached == cached


def test_the_size_of_the_budget_changes_nothing():
    model, prompts = random_gpt(CONFIGS["banded"], torch.float32), texts()
    assert run(Engine(model, 4, budget=1), prompts) == run(Engine(model, 4, budget=4096), prompts)


def test_long_prompts_do_not_stall_running_answers():
    engine = Engine(random_gpt(CONFIGS["gpt2"]), n_slot=2, budget=1)
    events, long = [], []
    engine.submit(make_request([1], events))
    engine.step()
    engine.submit(make_request(list(range(100)), long))
    for _ in range(3):  # three of the four chunks of the long prompt
        before = len(events)
        engine.step()
        assert len(events) == before + 1 and not long
    engine.step()
    assert isinstance(long[0], PromptRead)


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_forks_are_the_samples_of_the_twin(options):
    model, prompt = random_gpt(CONFIGS["modern"]), texts(1)[0]
    events, other = [], []
    engine = Engine(model, n_slot=6)
    engine.submit(make_request(texts(3)[2], other))
    engine.submit(make_request(prompt, events, options=options, n=4))
    engine.run()
    [twins] = generate(model, [prompt], SamplingConfig(20, **options), n=4)
    for sample, twin in enumerate(twins):
        assert [t.id for t in events if isinstance(t, Token) and t.sample == sample] == twin.tokens


def test_options_of_one_request_do_not_touch_another():
    model, prompt = random_gpt(CONFIGS["gpt2"]), [1, 2, 3]
    engine, events = Engine(model, 8), []
    likeliest = run(engine, [prompt])[0][0].id
    banned = {"temperature": 0.0, "logit_bias": ((likeliest, -100.0),)}
    options_list = [
        GREEDY,
        banned,
        DRAWN,
        {"top_k": 1},
        {"min_p": 1.0},
        {"presence_penalty": 2.0, "seed": 1},
    ]
    rows = [[] for _ in options_list]
    for options, events in zip(options_list, rows, strict=True):
        engine.submit(make_request(prompt, events, options=options))
    engine.run()
    ids = [[t.id for t in row if isinstance(t, Token)] for row in rows]
    assert ids[0][0] == likeliest and likeliest not in ids[1][:1]
    assert ids[3] == ids[0] == ids[4]
    assert ids[2] == [t.id for t in run(Engine(model, 1), [prompt], options=DRAWN)[0]]
    assert len(events) == 21


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
    engine, events = Engine(model, 2), []
    run(engine, [prompt])  # the cache would know the prompt, but not its scores
    engine.submit(make_request(prompt, events, max_tokens=1, prompt_logprobs=True))
    engine.run()
    read = events[0]
    assert read.cached == 0 and read.logprobs[0] is None and len(read.logprobs) == len(prompt)
    assert read.logprobs[1:] == pytest.approx(score(model, [prompt[:1]], [prompt[1:]])[0], abs=1e-9)
    for logprob, top in zip(read.logprobs[1:], read.tops[1:], strict=True):
        assert len(top) == 3 and top[0][1] >= max(logprob, top[1][1])
