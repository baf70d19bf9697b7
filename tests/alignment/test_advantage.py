import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.alignment.advantage import gae, masked_mean, masked_var, token_rewards, whiten
from seq2chat.alignment.kl import AdaptiveKL, best_of_n_kl, k1, k3

NINE = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
ALL = torch.ones(3, 3, dtype=torch.bool)
seeds = st.integers(0, 10_000)


def spans(chance, batch, seq):
    """A mask of one piece in each row, anywhere, of at least two tokens."""
    begin = torch.randint(0, seq - 1, (batch, 1), generator=chance)
    length = 2 + (torch.rand(batch, 1, generator=chance) * (seq - 1 - begin)).long()
    return (torch.arange(seq) >= begin) & (torch.arange(seq) < begin + length)


def numbers(chance, *shape):
    return torch.randn(shape, generator=chance, dtype=torch.float64)


def filled(x, mask, garbage):
    return x.where(mask, garbage)


def test_statistics_agree_with_torch_on_what_the_mask_keeps():
    chance = torch.Generator().manual_seed(0)
    x, mask = numbers(chance, 5, 7), torch.rand(5, 7, generator=chance) > 0.4
    torch.testing.assert_close(masked_mean(x, mask), x[mask].mean())
    torch.testing.assert_close(masked_var(x, mask), x[mask].var())
    torch.testing.assert_close(masked_var(x, mask, unbiased=False), x[mask].var(unbiased=False))


def test_statistics_of_little():
    one = torch.tensor([[True, False]])
    x = torch.tensor([[3.0, 5.0]])
    assert masked_mean(x, one) == 3
    assert masked_var(x, one) == 0
    assert masked_mean(x, one & False).isnan()
    assert whiten(x, one).tolist() == [[0, 0]]
    assert whiten(x, one & False).tolist() == [[0, 0]]


def test_whitening_gives_the_published_numbers():
    """From Huang et al. 2023, "The N implementation details of RLHF with PPO"."""
    kept_mean = whiten(NINE, ALL, shift_mean=False)
    torch.testing.assert_close(
        kept_mean[0], torch.tensor([0.1394, 0.5046, 0.8697]), atol=1e-4, rtol=0
    )
    biased = (NINE - 1.6) * masked_var(NINE, ALL, unbiased=False).rsqrt() + 1.6
    torch.testing.assert_close(biased[0], torch.tensor([0.0508, 0.4381, 0.8254]), atol=1e-4, rtol=0)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_whitened_numbers_have_mean_0_variance_1(seed):
    chance = torch.Generator().manual_seed(seed)
    mask = spans(chance, 4, 6)
    x = 7 * numbers(chance, 4, 6) + 3
    white = whiten(x, mask)
    assert masked_mean(white, mask).item() == pytest.approx(0, abs=1e-10)
    var = masked_var(x, mask).item()
    assert masked_var(white, mask).item() == pytest.approx(var / (var + 1e-8))
    assert not white[~mask].any()
    torch.testing.assert_close(
        whiten(x, mask, shift_mean=False)[mask], white[mask] + masked_mean(x, mask)
    )


def test_half_precision_is_widened():
    x = torch.full((1, 4096), 1.01, dtype=torch.bfloat16)
    mask = torch.ones_like(x, dtype=torch.bool)
    assert masked_mean(x, mask).dtype == torch.float32
    assert masked_mean(x, mask).item() == pytest.approx(x[0, 0].item(), rel=1e-6)


def test_advantages_of_one_answer():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.125]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.4209375, 0.70625, 0.875]]))
    torch.testing.assert_close(returns, torch.tensor([[0.9209375, 0.95625, 1.0]]))


@given(seeds, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_advantages_are_the_discounted_sum_of_the_errors(seed, gamma, lam):
    """The definition, equation 16 of Schulman et al. 2015b, token by token."""
    chance = torch.Generator().manual_seed(seed)
    mask = spans(chance, 3, 7)
    rewards, values = numbers(chance, 3, 7), numbers(chance, 3, 7)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row in range(3):
        r, v = rewards[row][mask[row]].tolist(), [*values[row][mask[row]].tolist(), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        expected = [
            sum((gamma * lam) ** (i - t) * deltas[i] for i in range(t, len(r)))
            for t in range(len(r))
        ]
        assert advantages[row][mask[row]].tolist() == pytest.approx(expected)
        assert returns[row][mask[row]].tolist() == pytest.approx(
            [a + b for a, b in zip(expected, v, strict=False)]
        )
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_gae_with_lambda_1_is_monte_carlo(seed):
    chance = torch.Generator().manual_seed(seed)
    mask = spans(chance, 3, 7)
    rewards, values = numbers(chance, 3, 7), numbers(chance, 3, 7)
    _, returns = gae(rewards, values, mask, lam=1.0)
    later = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, later)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_nothing_outside_the_mask_matters(garbage):
    chance = torch.Generator().manual_seed(1)
    mask = spans(chance, 4, 6)
    x, y, score = numbers(chance, 4, 6), numbers(chance, 4, 6), numbers(chance, 4)
    x0, y0, x1, y1 = x * mask, y * mask, filled(x, mask, garbage), filled(y, mask, garbage)
    for function in (masked_mean, masked_var, whiten, lambda a, m: whiten(a, m, shift_mean=False)):
        torch.testing.assert_close(function(x1, mask), function(x0, mask), rtol=0, atol=0)
    for a, b in zip(gae(x1, y1, mask), gae(x0, y0, mask), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(
        token_rewards(score, x1, mask, 0.1), token_rewards(score, x0, mask, 0.1)
    )


@given(seeds, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_padding_and_order_change_nothing(seed, left, right):
    chance = torch.Generator().manual_seed(seed)
    mask = spans(chance, 4, 6)
    rewards, values, score = numbers(chance, 4, 6), numbers(chance, 4, 6), numbers(chance, 4)
    order = torch.randperm(4, generator=chance)

    def pad(x):
        # The padding is drawn too: what is outside the mask has no meaning.
        parts = [numbers(chance, 4, left), x, numbers(chance, 4, right)]
        if x.dtype == torch.bool:
            parts = [
                torch.zeros(4, left, dtype=torch.bool),
                x,
                torch.zeros(4, right, dtype=torch.bool),
            ]
        return torch.cat(parts, dim=1)[order]

    window = slice(left, left + 6)
    expected = (
        *gae(rewards, values, mask),
        whiten(values, mask),
        token_rewards(score, values, mask, 0.3),
    )
    found = (
        *gae(pad(rewards), pad(values), pad(mask)),
        whiten(pad(values), pad(mask)),
        token_rewards(score[order], pad(values), pad(mask), 0.3),
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[:, window], b[order])
        assert a.abs().sum().item() == pytest.approx(b.abs().sum().item())


@given(seeds, st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_the_rewards_of_an_answer_add_up(seed, beta):
    chance = torch.Generator().manual_seed(seed)
    mask = spans(chance, 4, 6)
    score, kl = numbers(chance, 4), numbers(chance, 4, 6)
    rewards = token_rewards(score, kl, mask, beta)
    torch.testing.assert_close(rewards.sum(1), score - beta * (kl * mask).sum(1))
    assert not rewards[~mask].any()


def test_the_score_is_earned_at_the_last_token():
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    rewards = token_rewards(torch.tensor([3.0, 4.0, 5.0]), torch.ones(3, 4), mask, 0.5)
    assert rewards.tolist() == [[0, -0.5, 2.5, 0], [-0.5, -0.5, -0.5, 3.5], [0, 0, 0, 0]]


def test_advantages_carry_no_gradient():
    values = torch.ones(1, 3, requires_grad=True)
    advantages, returns = gae(torch.ones(1, 3), values, torch.ones(1, 3, dtype=torch.bool))
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_both_estimators_have_the_divergence_as_mean():
    chance = torch.Generator().manual_seed(3)
    logp, ref_logp = numbers(chance, 8).log_softmax(0), numbers(chance, 8).log_softmax(0)
    divergence = (logp.exp() * (logp - ref_logp)).sum()
    for estimator in (k1, k3):
        torch.testing.assert_close((logp.exp() * estimator(logp, ref_logp)).sum(), divergence)
    assert (k3(logp, ref_logp) >= 0).all()
    assert (k1(logp, ref_logp) < 0).any()
    assert not k1(logp, logp).any()
    assert not k3(logp, logp).any()


def test_k3_is_exact_where_the_policies_nearly_agree():
    """ρ - 1 - log ρ is about δ²/2: of what exp(δ) - 1 - δ would leave in float32, nothing is
    right."""
    assert k3(torch.tensor([1e-4]), torch.tensor([0.0])).item() == pytest.approx(5e-9, rel=1e-2)


@pytest.mark.parametrize(
    ("kl", "beta"),
    [
        (12.0, 0.151536),
        (6.6, 0.150768),
        (6.0, 0.15),
        (4.8, 0.148464),
        (0.0, 0.148464),
        (-3, 0.148464),
    ],
)
def test_the_coefficient_follows_the_divergence(kl, beta):
    control = AdaptiveKL(beta=0.15, target=6.0)
    assert control.update(float(kl), 512).beta == pytest.approx(beta, abs=1e-9)
    assert control.beta == 0.15


def test_a_divergence_that_is_not_a_number_stays_visible():
    assert math.isnan(AdaptiveKL(0.15, 6.0).update(math.nan, 512).beta)


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (4, 0.6363), (16, 1.8351), (64, 3.1745)])
def test_best_of_n(n, kl):
    assert best_of_n_kl(n) == pytest.approx(kl, abs=5e-5)


def test_best_of_n_in_a_world_without_ties():
    """Of 1,000 equally likely answers, all of different worth, the i-th is the best of n with Fⁿ(i)
    - Fⁿ(i-1)."""
    n, worlds = 4, 1000
    below = torch.arange(worlds + 1, dtype=torch.float64) / worlds
    best = below[1:] ** n - below[:-1] ** n
    assert (best * (best * worlds).log()).sum().item() == pytest.approx(best_of_n_kl(n), abs=1e-3)
