from inspect import unwrap
from itertools import chain

import pytest
import torch

from seq2chat.config import BERTConfig, GPTConfig, Seq2SeqConfig, TransformerConfig, UserError
from seq2chat.generation.decode import generate, start, stream
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer

SHAPE = {"vocab_size": 31, "context": 24, "n_layer": 4, "n_head": 4, "d_model": 16}
CONFIGS = {
    "gpt2": GPTConfig("gpt2", **SHAPE),
    "banded": GPTConfig("gpt2", window=5, **SHAPE),
    "modern": GPTConfig("modern", n_kv_head=2, **SHAPE),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
PROMPTS = [[5, 1, 7, 2], [3], [9, 9, 8, 1, 1, 4, 30, 2, 6]]
GREEDY = SamplingConfig(temperature=0.0, max_tokens=12)


def random_gpt(config):
    torch.manual_seed(0)
    model = GPT(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


class Counter:
    """A model whose answer is arithmetic: after token t comes t + 1, modulo 10, beyond doubt."""

    context, device, training, reads_source = 50, torch.device("cpu"), False, False

    def train(self, mode=True):
        self.training = mode

    def start(self, padding=None):
        return self

    def reorder(self, rows):
        pass

    def step(self, tokens, state):
        assert not self.training
        return torch.nn.functional.one_hot((tokens + 1) % 10, 10) * 100.0, state


@torch.no_grad()
def full_forward(model, prompt, choose, length):
    """The plain twin: run everything again for every token."""
    ids, logprobs = list(prompt), []
    while len(ids) < min(len(prompt) + length, model.context):
        logits = model(torch.tensor([ids]))[0, -1]
        ids.append(choose(logits))
        logprobs.append(logits.log_softmax(-1)[ids[-1]].item())
    return ids[len(prompt) :], logprobs


@each_config
def test_greedy_decoding_equals_full_forward(config):
    model = random_gpt(config)
    for prompt, (completion,) in zip(PROMPTS, generate(model, PROMPTS, GREEDY), strict=True):
        tokens, logprobs = full_forward(model, prompt, lambda logits: logits.argmax().item(), 12)
        assert completion.tokens == tokens
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-9)
        assert completion.finish == "length"
    assert len({tuple(c.tokens) for (c,) in generate(model, PROMPTS, GREEDY)}) == 3


@each_config
def test_a_row_is_the_same_alone_and_in_company(config):
    model, sampling = (
        random_gpt(config),
        SamplingConfig(max_tokens=14, seed=3, repetition_penalty=1.3, top_p=0.95),
    )
    together = generate(model, PROMPTS, sampling, n=2)
    for one, other in zip(together[0], generate(model, PROMPTS[:1], sampling, n=2)[0], strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)


@each_config
def test_ended_rows_do_not_change_others(config):
    model, sampling = (
        random_gpt(config),
        SamplingConfig(max_tokens=15, seed=1, temperature=3.0, repetition_penalty=1.5),
    )
    free = generate(model, PROMPTS, sampling, n=3)
    ended = generate(model, PROMPTS, sampling, end_tokens=[4, 11], n=3)
    for one, other in zip(chain(*free), chain(*ended), strict=True):
        stops = [i for i, token in enumerate(one.tokens) if token in (4, 11)]
        assert other.tokens == (one.tokens[: stops[0] + 1] if stops else one.tokens)
        assert other.finish == ("stop" if stops else "length")
    assert len({len(completion.tokens) for completion in chain(*ended)}) > 3


def test_a_seed_repeats_and_samples_differ():
    model, sampling = (
        random_gpt(CONFIGS["modern"]),
        SamplingConfig(max_tokens=10, temperature=2.0, seed=5),
    )
    first = generate(model, PROMPTS, sampling, n=4)
    assert first == generate(model, PROMPTS, sampling, n=4)
    assert first != generate(
        model, PROMPTS, SamplingConfig(max_tokens=10, temperature=2.0, seed=6), n=4
    )
    assert [len({tuple(c.tokens) for c in samples}) for samples in first] == [4, 4, 4]
    assert [c.tokens for c in generate(model, [[3], [3]], sampling)[0]] != [
        c.tokens for c in generate(model, [[3], [3]], sampling)[1]
    ]


def test_first_tokens_follow_the_models_distribution():
    model, n = random_gpt(CONFIGS["modern"]), 4000
    (samples,) = generate(
        model, [[5, 1]], SamplingConfig(max_tokens=1, temperature=3.0, seed=0), n=n
    )
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 1]]))[0, -1] / 3.0).softmax(-1)
    observed = torch.bincount(torch.tensor([c.tokens[0] for c in samples]), minlength=31) / n
    assert ((observed - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt() + 1e-3).all()


def test_logprobs_do_not_depend_on_sampling():
    """They are the model's own."""
    model = random_gpt(CONFIGS["gpt2"])
    sampling = SamplingConfig(
        max_tokens=8, temperature=0.5, top_k=5, repetition_penalty=1.5, seed=0
    )
    for prompt, (completion,) in zip(PROMPTS, generate(model, PROMPTS, sampling), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.tokens]))[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-9)


def test_repetition_penalty_counts_prompt_and_answer():
    model = random_gpt(CONFIGS["modern"])
    prompts = [[1, 2, 3], [30, 29]]
    sampling = SamplingConfig(temperature=0.0, max_tokens=20, repetition_penalty=1e6)
    for prompt, (completion,) in zip(prompts, generate(model, prompts, sampling), strict=True):
        ids = prompt + completion.tokens
        assert len(set(ids)) == len(ids)


@each_config
def test_each_row_may_fill_the_context_by_itself(config):
    model, sampling = random_gpt(config), SamplingConfig(temperature=0.0, max_tokens=100)
    for prompt, (completion,) in zip(PROMPTS, generate(model, PROMPTS, sampling), strict=True):
        assert len(prompt) + len(completion.tokens) == 24
        assert completion.finish == "length"
        assert (
            completion.tokens
            == full_forward(model, prompt, lambda logits: logits.argmax().item(), 100)[0]
        )


def test_ends_are_told_apart():
    prompts, sampling = [[1], [5, 6], [2, 3]], SamplingConfig(max_tokens=4)
    (one,), (two,), (three,) = generate(
        Counter(),
        prompts,
        sampling,
        end_tokens=[8],
        stop=lambda token: token.id == 5 and token.prompt == 0,
    )
    assert (one.tokens, one.finish) == ([2, 3, 4, 5], "stop")
    assert (two.tokens, two.finish) == ([7, 8], "stop")
    assert (three.tokens, three.finish) == ([4, 5, 6, 7], "length")
    ((plain,),) = generate(Counter(), [[1]], sampling)
    assert (plain.tokens, plain.finish) == ([2, 3, 4, 5], "length")


def test_stream_yields_running_rows_once_per_step():
    steps = list(stream(Counter(), [[1], [6]], SamplingConfig(max_tokens=3), end_tokens=[8], n=2))
    assert [[(t.prompt, t.sample, t.id, t.finish) for t in step] for step in steps] == [
        [(0, 0, 2, None), (0, 1, 2, None), (1, 0, 7, None), (1, 1, 7, None)],
        [(0, 0, 3, None), (0, 1, 3, None), (1, 0, 8, "stop"), (1, 1, 8, "stop")],
        [(0, 0, 4, "length"), (0, 1, 4, "length")],
    ]


@pytest.mark.parametrize("consume", [list, next], ids=["to the end", "abandoned"])
def test_decoding_disables_dropout(consume):
    """Training mode is restored."""
    model = random_gpt(GPTConfig("modern", dropout=0.5, **SHAPE)).train()
    tokens = stream(model, PROMPTS, GREEDY)
    consume(tokens)
    tokens.close()
    assert model.training
    assert all(module.training for module in model.modules())
    expected = generate(random_gpt(GPTConfig("modern", dropout=0.5, **SHAPE)), PROMPTS, GREEDY)
    assert generate(model, PROMPTS, GREEDY) == expected
    model(torch.tensor([[1, 2]])).sum().backward()


@pytest.mark.parametrize(
    ("prompts", "n", "message"),
    [
        ([], 1, "There is no prompt"),
        ([[1], []], 1, "Prompt 1 is empty"),
        (
            [[1] * 24],
            1,
            "Prompt 0 has 24 tokens and the model's context is 24; shorten it to at most 23",
        ),
        ([[1]], 0, "n is 0"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, n, message):
    with pytest.raises(UserError, match=message):
        generate(random_gpt(CONFIGS["modern"]), prompts, GREEDY, n=n)


SMALL = {"vocab_size": 11, "d_model": 16}
TRANSLATORS = {
    "fixed": (Seq2Seq, Seq2SeqConfig(attention="fixed", d_embed=8, **SMALL)),
    "additive": (
        Seq2Seq,
        Seq2SeqConfig(attention="additive", cell="lstm", n_layer=2, d_embed=8, **SMALL),
    ),
    "transformer": (
        Transformer,
        TransformerConfig(n_layer=2, n_head=2, context=24, tie_embeddings=False, **SMALL),
    ),
}
each_translator = pytest.mark.parametrize("name", TRANSLATORS)
SOURCES = [[5, 3, 2, 0], [7, 0], [4, 4, 9, 1, 2, 8, 10, 0]]


def random_translator(name):
    model, config = TRANSLATORS[name]
    torch.manual_seed(0)
    model = model(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


@each_translator
def test_greedy_translation_equals_full_forward(name):
    model = random_translator(name)
    results = generate(model, [[0]] * 3, GREEDY, sources=SOURCES)
    for source, (completion,) in zip(SOURCES, results, strict=True):
        ids, logprobs = [0], []
        for _ in range(12):
            with torch.no_grad():
                logits = model.eval()(torch.tensor([source]), torch.tensor([ids]))[0, -1]
            ids.append(logits.argmax().item())
            logprobs.append(logits.log_softmax(-1)[ids[-1]].item())
        assert completion.tokens == ids[1:]
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-9)


@each_translator
def test_translation_samples_are_batch_independent(name):
    model, sampling = (
        random_translator(name),
        SamplingConfig(max_tokens=10, seed=2, temperature=1.5),
    )
    together = generate(model, [[0]] * 3, sampling, [0], n=3, sources=SOURCES)
    alone = generate(model, [[0]], sampling, [0], n=3, sources=SOURCES[:1])
    assert [c.tokens for c in together[0]] == [c.tokens for c in alone[0]]
    for one, other in zip(together[0], alone[0], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)
    assert len({c.finish for samples in together for c in samples}) == 2


@each_translator
def test_target_may_begin_with_a_prompt(name):
    model = random_translator(name)
    (whole,), *_ = generate(model, [[0]], GREEDY, sources=SOURCES[:1])
    (rest,), *_ = generate(model, [[0, *whole.tokens[:4]]], GREEDY, sources=SOURCES[:1])
    assert rest.tokens[:8] == whole.tokens[4:]


@pytest.mark.parametrize(
    ("model", "prompts", "sources", "message"),
    [
        (random_translator("fixed"), [[0]], None, "A Seq2Seq translates a source; give `sources`"),
        (random_translator("transformer"), [[0]], SOURCES, "There are 3 sources and 1 prompts"),
        (random_translator("transformer"), [[0]] * 2, [[1], []], "Source 1 is empty"),
        (
            random_translator("transformer"),
            [[0]],
            [[1] * 25],
            "The source has 25 tokens, and the model's context is 24",
        ),
        (random_translator("additive"), [[0], [0, 1]], SOURCES[:2], "differ in length"),
        (Counter(), [[0]], SOURCES[:1], "A Counter continues a prompt and reads no source"),
    ],
    ids=range(6),
)
def test_unfitting_models_and_sources_are_refused(model, prompts, sources, message):
    with pytest.raises(UserError, match=message):
        generate(model, prompts, GREEDY, sources=sources)


def test_bert_cannot_generate():
    bert = BERT(BERTConfig(n_layer=1, n_head=2, **SMALL))
    with pytest.raises(
        UserError, match=r"A BERT sees both sides of a text and cannot generate one; .* fill-mask"
    ):
        # Not by way of annotations, which would refuse it first in tests.
        unwrap(start)(bert, None, [0])
