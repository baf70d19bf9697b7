import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import UserError
from seq2chat.generation.sampling import (
    Penalties,
    SamplingConfig,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token_logits,
    penalize_repetition,
    row_generators,
    sample,
)

PROBABILITIES = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]], dtype=torch.float64)
LOGITS = PROBABILITIES.log()


def kept(logits):
    return logits.isfinite().nonzero()[:, 1].tolist()


@pytest.mark.parametrize(
    ("k", "tokens"), [(1, [1]), (3, [1, 3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_the_k_likeliest(k, tokens):
    assert kept(keep_top_k(LOGITS, k)) == tokens


@pytest.mark.parametrize(
    ("p", "tokens"),
    [(0.01, [1]), (0.41, [1, 3]), (0.64, [1, 3]), (0.66, [1, 3, 4]), (0.99, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_smallest_nucleus(p, tokens):
    assert kept(keep_top_p(LOGITS, p)) == tokens


@pytest.mark.parametrize(
    ("p", "tokens"),
    [(1.0, [1]), (0.6, [1, 3]), (0.49, [1, 3, 4]), (0.2, [0, 1, 3, 4]), (0.1, [0, 1, 2, 3, 4])],
)
def test_min_p_keeps_a_share_of_the_likeliest(p, tokens):
    assert kept(keep_min_p(LOGITS, p)) == tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=2, max_size=12), st.floats(0.05, 0.99))
def test_nucleus_is_minimal_and_keeps_its_logits(logits, p):
    logits = torch.tensor([logits], dtype=torch.float64)
    result = keep_top_p(logits, p)
    inside = result.isfinite()
    assert torch.equal(result[inside], logits[inside])
    chosen = logits.softmax(-1)[inside]
    assert chosen.sum() >= p - 1e-12
    assert chosen.sum() - chosen.min() < p + 1e-12
    if not inside.all():
        assert logits[inside].min() >= logits[~inside].max()


def test_repetition_penalty_lowers_logits_of_any_sign():
    logits, seen = torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[True, True, False]])
    assert penalize_repetition(logits, seen, 1.5).tolist() == [[pytest.approx(2 / 1.5), -3.0, 3.0]]


def test_the_options_combine_in_the_documented_order():
    config = SamplingConfig(temperature=0.5, top_k=4, top_p=0.9, min_p=0.3, repetition_penalty=1.2)
    seen = torch.tensor([[False, True, False, False, True]])
    expected = penalize_repetition(LOGITS, seen, 1.2) / 0.5
    expected = keep_min_p(keep_top_p(keep_top_k(expected, 4), 0.9), 0.3)
    before = [
        Penalties(row_seen.nonzero()[:, 0].tolist(), 5, LOGITS.device)
        for row_seen in seen.expand(len(LOGITS), -1)
    ]
    assert torch.equal(next_token_logits(LOGITS, config, before), expected)
    assert torch.equal(next_token_logits(LOGITS, SamplingConfig()), LOGITS)


@pytest.mark.parametrize(
    "config",
    [SamplingConfig(), SamplingConfig(temperature=0.7), SamplingConfig(temperature=2.0, top_k=3)],
)
def test_draws_follow_the_closed_form_distribution(config):
    n = 20_000
    draws = sample(LOGITS.expand(n, -1), config, row_generators(0, n))
    powers = PROBABILITIES[0] ** (1 / config.temperature)
    if config.top_k:
        powers[[0, 2]] = 0
    expected = powers / powers.sum()
    observed = torch.bincount(draws, minlength=5) / n
    deviation = (observed - expected).abs() / (expected * (1 - expected) / n).sqrt().clamp(
        min=1e-12
    )
    assert (deviation < 4).all()


def test_a_draw_inverts_the_cumulative_distribution():
    class Fixed(random.Random):
        def __init__(self, number):
            self.number = number

        def random(self):
            return self.number

    numbers = [0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.5501, 0.8001, 1 - 2**-53]
    draws = sample(LOGITS.expand(8, -1), SamplingConfig(), [Fixed(number) for number in numbers])
    assert draws.tolist() == [0, 0, 1, 1, 2, 3, 4, 4]
    ends = keep_top_k(LOGITS, 1).expand(2, -1)
    assert sample(ends, SamplingConfig(), [Fixed(0.0), Fixed(1 - 2**-53)]).tolist() == [1, 1]


def test_temperature_zero_is_the_limit_of_small_ones():
    torch.manual_seed(0)
    logits = torch.randn(50, 20)
    greedy = sample(logits, SamplingConfig(temperature=0.0), row_generators(0, 50))
    assert torch.equal(greedy, logits.argmax(-1))
    assert torch.equal(
        greedy, sample(logits, SamplingConfig(temperature=1e-6), row_generators(0, 50))
    )


def test_a_rows_draws_do_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    logits = torch.randn(6, 20)
    together = sample(logits, SamplingConfig(), row_generators(7, 6))
    apart = [
        sample(logits[i : i + 1], SamplingConfig(), [row_generators(7, 6)[i]]).item()
        for i in range(6)
    ]
    assert together.tolist() == apart
    assert torch.equal(sample(logits[:3], SamplingConfig(), row_generators(7, 3)), together[:3])


def test_generators_differ_by_row_and_by_seed():
    numbers = [g.random() for seed in (0, 1, None, None) for g in row_generators(seed, 3)]
    assert len(set(numbers)) == 12
    assert [g.random() for g in row_generators(0, 2)] == numbers[:2]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(UserError, match=f"{option} is {value}; write"):
        SamplingConfig(**{option: value})


@pytest.mark.parametrize(
    "options", [{"temperature": 1e-300}, {"temperature": 1e-9}, {"repetition_penalty": 1e30}]
)
def test_extreme_options_still_draw_a_token(options):
    logits = torch.tensor([[3.0, 80.0, -2.0, 79.0]])
    config = SamplingConfig(**options)
    before = [Penalties([0, 1], 4, logits.device)] if config.has_penalties else []
    [token] = sample(logits, config, row_generators(0, 1), before).tolist()
    assert token == (1 if "temperature" in options else 3)


def test_penalties_follow_their_formulas():
    logits, before = (
        torch.tensor([[2.0, -2.0, 1.0, 0.0]]),
        Penalties([0, 1], 4, torch.device("cpu")),
    )
    before.add(2)
    before.add(2)
    config = SamplingConfig(
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((3, 7.0),)
    )
    assert next_token_logits(logits, config, [before]).tolist() == [
        [1.0, -4.0, 0.5 - 0.5 - 0.5, 7.0]
    ]
