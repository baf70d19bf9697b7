"""The step in C++ against `GPT.step`, and a row against itself among others."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch

from seq2chat.config import GPTConfig
from seq2chat.generation import decode_step
from seq2chat.generation.blocks import find_blocks
from seq2chat.generation.decode import generate
from seq2chat.generation.decode_step import DecodeStep, NoCompiler, can_step
from seq2chat.generation.fast_gpt import FastGPT, with_fast_steps
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import add_lora
from seq2chat.serving.served_model import linear_maps, quantize

SMALL = GPTConfig("modern", vocab_size=101, context=80, n_layer=2, n_head=4, d_model=64)
SHAPES = {
    "gpt2": dataclasses.replace(SMALL, layout="gpt2"),
    "gpt-neo": dataclasses.replace(SMALL, layout="gpt2", window=8),
    "modern": SMALL,
    "grouped": dataclasses.replace(SMALL, n_kv_head=2),
    # Heads of 10 and a width of 60 are no whole vectors.
    "llama": dataclasses.replace(SMALL, layout="llama", n_head=6, n_kv_head=2, d_model=60),
    "qwen2": dataclasses.replace(SMALL, layout="qwen2", tie_embeddings=True),
    "mistral": dataclasses.replace(SMALL, layout="mistral", window=8),
}
FORMATS = ["float32", "bfloat16", "int8"]
N, SEQ = 3, 40


def random_gpt(config: GPTConfig, number_format: str = "float32") -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    if number_format == "bfloat16":
        for linear in linear_maps(model):
            linear.to(torch.bfloat16)
    if number_format == "int8":
        quantize(model)
    return model


class Slots:
    """A cache of five slots with room for 64 tokens, and the steps on it."""

    def __init__(self, model: GPT) -> None:
        config = model.config
        shape = 5, config.n_kv_head, 64, config.d_head
        self.keys = [torch.zeros(shape) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape) for _ in range(config.n_layer)]
        self.step = DecodeStep(model)

    def read(self, tokens, slots, place, first=0):
        n = len(slots)
        return self.step(
            tokens.tolist(), slots, [place] * n, [first] * n, self.keys, self.values, room=64
        )


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_steps_equal_the_plain_model(config, number_format):
    model = random_gpt(config, number_format)
    tokens = torch.randint(0, 101, (N, SEQ))
    cache, state = Slots(model), model.start()
    # In bfloat16, both round the inputs of products, and the plain model their outputs, too.
    tolerance = 0.05 if number_format == "bfloat16" else 2e-5
    for i in range(SEQ):
        expected, state = model.step(tokens[:, i : i + 1], state)
        expected = expected[:, 0].float()
        logits = cache.read(tokens[:, i], [4, 0, 2], i)
        scale = expected.abs().max()
        torch.testing.assert_close(logits, expected, rtol=0, atol=(tolerance * scale).item())


@pytest.mark.parametrize("number_format", FORMATS)
def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads(number_format):
    model = random_gpt(SHAPES["llama"], number_format)
    tokens = torch.randint(0, 101, (5, 20))
    together, alone = Slots(model), Slots(model)
    n_thread = torch.get_num_threads()
    torch.set_num_threads(3)
    other_threads = Slots(model)
    torch.set_num_threads(n_thread)
    for i in range(20):
        logits = together.read(tokens[:, i], [0, 1, 2, 3, 4], i)
        assert torch.equal(other_threads.read(tokens[:, i], [0, 1, 2, 3, 4], i), logits)
        for row in range(5):
            single = alone.read(tokens[row : row + 1, i], [row], i)
            assert torch.equal(single[0], logits[row])


def test_rounded_matrices_are_those_of_a_rounded_model():
    model, rounded = random_gpt(SMALL), random_gpt(SMALL)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.bfloat16())
    step = DecodeStep(model, torch.bfloat16)
    keys, values = ([torch.zeros(1, 4, 64, 16) for _ in range(2)] for _ in range(2))
    logits = step([5], [0], [0], [0], keys, values, room=64)
    with torch.no_grad():
        expected, _ = rounded.step(torch.tensor([[5]]), rounded.start())
    torch.testing.assert_close(logits, expected[:, 0], rtol=0, atol=0.02)
    assert not torch.equal(logits, Slots(model).read(torch.tensor([5]), [0], 0))


def test_diverged_weights_give_nan():
    model = random_gpt(SMALL)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[3] = torch.nan
    assert Slots(model).read(torch.tensor([1]), [0], 0).isnan().all()


@pytest.mark.parametrize("config", [SHAPES["gpt-neo"], SHAPES["grouped"]], ids=["neo", "grouped"])
def test_generation_with_fast_steps_equals_the_plain_one(config):
    model = random_gpt(config)
    fast = with_fast_steps(model)
    assert isinstance(fast, FastGPT)
    several = [[1, 2, 3], [4], [5] * 30]  # padded to one length
    for n, prompts in ((1, several), (2, several), (1, [[4]])):
        plain, quick = (
            generate(m, prompts, SamplingConfig(49, seed=3), [7], n=n) for m in (model, fast)
        )
        for one, other in zip(chain(*plain), chain(*quick), strict=True):
            assert one.tokens == other.tokens
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_matrices_of_one_input_may_have_different_formats():
    """After adapters were merged into some of a quantized model's matrices."""
    model = random_gpt(SMALL)
    with torch.no_grad():
        for layer in model.layers:
            for linear in (layer.self_attn.q_proj, layer.mlp.up_proj):
                linear.weight.copy_(linear.weight.mul(8).round() / 8)
                linear.weight.view(-1, 32)[:, 0] = 127 / 8
                assert find_blocks(linear.weight) is not None
    step, single = DecodeStep(model, torch.bfloat16), Slots(model)
    keys, values = ([torch.zeros_like(k) for k in single.keys] for _ in range(2))
    logits = step([5], [0], [0], [0], keys, values, room=64)
    expected = single.read(torch.tensor([5]), [0], 0)
    scale = expected.abs().max().item()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05 * scale)


def test_numbers_out_of_range_are_refused():
    model = random_gpt(SMALL)
    slots = Slots(model)
    for tokens, slot, place in (([101], [0], 0), ([-1], [0], 0), ([1], [5], 0), ([1], [0], 64)):
        with pytest.raises(IndexError, match="is not below"):
            slots.read(torch.tensor(tokens), slot, place)
    with pytest.raises(IndexError, match="A row"):
        slots.read(torch.zeros(17, dtype=torch.int64), [0] * 17, 0)
    fast, state = FastGPT(model), model.start()
    fast.step(torch.tensor([[1, 2]]), state)
    with pytest.raises(IndexError, match="The state has 1 rows"):
        fast.step(torch.tensor([[1], [2]]), state)


def test_changed_weights_are_used_by_the_next_text():
    model = random_gpt(SMALL)
    fast = FastGPT(model)
    greedy = SamplingConfig(12, 0.0)
    generate(fast, [[1, 2]], greedy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    [[new]], [[expected]] = (generate(m, [[1, 2]], greedy) for m in (fast, model))
    assert new.tokens == expected.tokens
    assert FastGPT(model)._step is fast._step


def test_calls_from_several_threads_wait_for_each_other():
    model = random_gpt(SMALL)
    slots = Slots(model)
    tokens = torch.arange(5)
    expected = slots.read(tokens, [0, 1, 2, 3, 4], 0)
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda i: slots.read(tokens[i : i + 1], [i], 0), [0, 1, 2, 3, 4] * 20)
        for i, logits in zip([0, 1, 2, 3, 4] * 20, results, strict=True):
            assert torch.equal(logits[0], expected[i])


def test_models_that_it_cannot_compute_stay_as_they_are():
    model = random_gpt(SMALL)
    assert can_step(model)
    assert with_fast_steps(model.double()) is model
    adapted = random_gpt(SMALL)
    add_lora(adapted, rank=2, alpha=4.0)
    assert not can_step(adapted)


def test_without_a_compiler_decoding_stays_plain(monkeypatch):
    decode_step.library.cache_clear()
    monkeypatch.setenv("CXX", "false")
    model = random_gpt(SMALL)
    with pytest.raises(NoCompiler, match="false failed"):
        DecodeStep(model)
    assert with_fast_steps(model) is model
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler, match="no-such-compiler"):
        DecodeStep(model)
    monkeypatch.setenv("CXX", "'unfinished")
    with pytest.raises(NoCompiler, match="No closing quotation"):
        DecodeStep(model)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert with_fast_steps(model) is model
    decode_step.library.cache_clear()
