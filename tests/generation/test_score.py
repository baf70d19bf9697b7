import math

import pytest
import torch

from seq2chat.config import GPTConfig, Seq2SeqConfig, TransformerConfig, UserError
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.score import score
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer

SHAPE = {"vocab_size": 13, "d_model": 16}
CONFIGS = {
    "gpt": (GPT, GPTConfig(n_layer=2, n_head=2, context=30, **SHAPE)),
    "transformer": (Transformer, TransformerConfig(n_layer=2, n_head=2, context=30, **SHAPE)),
    "fixed": (Seq2Seq, Seq2SeqConfig(attention="fixed", d_embed=8, **SHAPE)),
    "additive": (Seq2Seq, Seq2SeqConfig(attention="additive", cell="lstm", d_embed=8, **SHAPE)),
}
each_model = pytest.mark.parametrize("name", CONFIGS)
PROMPTS = [[0, 4], [0], [0, 2, 9, 9]]
TARGETS = [[3, 7, 0], [], [5, 5, 1, 2, 8, 0]]
SOURCES = [[5, 3, 2, 9, 0], [7, 0], [4, 4, 9, 1, 2, 8, 11, 0]]


def make(name):
    model, config = CONFIGS[name]
    torch.manual_seed(0)
    model = model(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, None if name == "gpt" else SOURCES


@each_model
def test_scores_equal_log_softmax_of_full_forward(name):
    model, sources = make(name)
    scores = score(model, PROMPTS, TARGETS, sources)
    assert [len(values) for values in scores] == [3, 0, 6]
    for i, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        row = torch.tensor([[*prompt, *target]])
        with torch.no_grad():
            logits = model.eval()(*([] if sources is None else [torch.tensor([sources[i]])]), row)
        logprobs = logits[0].log_softmax(-1)
        expected = [logprobs[len(prompt) - 1 + j, token].item() for j, token in enumerate(target)]
        assert scores[i] == pytest.approx(expected, abs=1e-9)


@each_model
def test_nothing_scores_nothing(name):
    model, sources = make(name)
    assert score(model, [[0]] * 3, [[]] * 3, sources) == [[], [], []]


@each_model
def test_scores_of_samples_equal_reported_logprobs(name):
    model, sources = make(name)
    prompts = PROMPTS if sources is None else [[0]] * 3
    completions = generate(model, prompts, SamplingConfig(10, seed=0), [0], n=3, sources=sources)
    for i in range(3):
        targets = [completion.tokens for completion in completions[i]]
        forced = score(model, [prompts[i]] * 3, targets, sources and [sources[i]] * 3)
        for completion, values in zip(completions[i], forced, strict=True):
            assert completion.logprobs == pytest.approx(values, abs=1e-9)


@each_model
def test_probabilities_of_continuations_sum_to_one(name):
    model, sources = make(name)
    pairs = [[a, b] for a in range(13) for b in range(13)]
    scores = score(model, [[0, 4]] * 169, pairs, sources and sources[:1] * 169)
    assert sum(math.exp(sum(values)) for values in scores) == pytest.approx(1, abs=1e-9)


def test_dropout_is_off_and_training_mode_comes_back():
    model, sources = make("additive")
    assert model.training
    assert model.config.dropout > 0
    assert score(model, PROMPTS[1:2], TARGETS[:1], sources[:1]) == score(
        model, PROMPTS[1:2], TARGETS[:1], sources[:1]
    )
    assert model.training


def test_what_cannot_be_scored_is_refused():
    model, sources = make("transformer")
    with pytest.raises(UserError, match="There are 1 targets and 3 prompts"):
        score(model, PROMPTS, TARGETS[:1], sources)
    with pytest.raises(UserError, match="The target has 31 tokens, and the model's context is 30"):
        score(model, [[0]], [[1] * 31], sources[:1])
