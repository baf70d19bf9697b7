import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.alignment.objectives import (
    dpo_loss,
    group_advantages,
    grpo_loss,
    policy_loss,
    ranking_loss,
    value_loss,
)

seeds = st.integers(0, 10_000)


def numbers(chance, *shape, scale=1.0):
    return scale * torch.randn(shape, generator=chance, dtype=torch.float64)


def rollout(seed, batch=4, seq=6, moved=0.3):
    """Log probabilities now and at the rollout, two more tensors of that shape, and a mask."""
    chance = torch.Generator().manual_seed(seed)
    old_logp = -numbers(chance, batch, seq).abs()
    logp = old_logp + numbers(chance, batch, seq, scale=moved)
    mask = torch.rand(batch, seq, generator=chance) > 0.3
    mask[:, 2] = True
    return logp, old_logp, numbers(chance, batch, seq), numbers(chance, batch, seq), mask


def token_losses(seed, garbage=None):
    """Every loss over tokens on one rollout, as functions of rows, with `garbage` written outside
    the mask."""
    logp, old_logp, x, y, mask = rollout(seed)
    ref_logp = old_logp + 0.2 * x
    if garbage is not None:
        logp, old_logp, ref_logp, x, y = (
            t.where(mask, garbage) for t in (logp, old_logp, ref_logp, x, y)
        )
    advantages = numbers(torch.Generator().manual_seed(seed + 1), 4)
    return {
        "policy": (lambda a, b, c, m: policy_loss(a, b, c, m), (logp, old_logp, x, mask)),
        "value": (lambda a, b, c, m: value_loss(a, b, c, m), (logp, old_logp, y, mask)),
        "grpo": (
            lambda a, b, c, d, m: grpo_loss(a, b, c, d, m, beta=0.1),
            (logp, old_logp, ref_logp, advantages, mask),
        ),
    }


LOSSES = list(token_losses(0))


# Ranking


def by_hand(scores, ranks, prompts):
    """Pair by pair, as equation 1 is written."""
    total, n = 0.0, 0
    for prompt in set(prompts.tolist()):
        rows = [i for i in range(len(prompts)) if prompts[i] == prompt]
        losses = [
            math.log1p(math.exp(scores[j] - scores[i]))
            for i, j in itertools.permutations(rows, 2)
            if ranks[i] < ranks[j]
        ]
        if losses:
            total, n = total + sum(losses) / len(losses), n + 1
    return total, n


def rankings(seed, n_prompts=5, places=4):
    chance = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 10, (n_prompts,), generator=chance)
    prompts = (100 + 3 * torch.arange(n_prompts)).repeat_interleave(sizes)
    return (
        numbers(chance, len(prompts)),
        torch.randint(0, places, (len(prompts),), generator=chance),
        prompts,
    )


@pytest.mark.parametrize(("margin", "loss"), [(0.0, 0.693147), (1.0, 0.313262), (2.0, 0.126928)])
def test_ranking_of_two(margin, loss):
    loss_sum, n, metrics = ranking_loss(
        torch.tensor([0.3, 0.3 + margin]), torch.tensor([2, 1]), torch.tensor([7, 7])
    )
    assert loss_sum.item() == pytest.approx(loss, abs=1e-6)
    assert n == 1
    assert metrics["margin"].item() == pytest.approx(margin)
    assert metrics["accuracy"] == (margin > 0)


@pytest.mark.parametrize("k", range(2, 10))
def test_equal_scores_cost_ln_2_for_every_k(k):
    loss_sum, n, metrics = ranking_loss(
        torch.zeros(k), torch.arange(k), torch.zeros(k, dtype=torch.long)
    )
    assert loss_sum.item() == pytest.approx(math.log(2))
    assert (n, metrics["pairs"]) == (1, k * (k - 1) // 2)
    assert metrics["accuracy"] == 0


@given(seeds, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_ranking_is_the_mean_over_untied_pairs(seed, places):
    scores, ranks, prompts = rankings(seed, places=places)
    expected, n_expected = by_hand(scores, ranks, prompts)
    loss_sum, n, metrics = ranking_loss(scores, ranks, prompts)
    assert loss_sum.item() == pytest.approx(expected)
    assert n == n_expected
    margins = [
        (scores[i] - scores[j]).item()
        for i, j in itertools.permutations(range(len(scores)), 2)
        if prompts[i] == prompts[j] and ranks[i] < ranks[j]
    ]
    assert metrics["pairs"] == len(margins)
    if margins:
        assert metrics["margin"].item() == pytest.approx(sum(margins) / len(margins))
        assert metrics["accuracy"].item() == pytest.approx(
            sum(margin > 0 for margin in margins) / len(margins)
        )


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_order_and_batches_do_not_matter(seed):
    scores, ranks, prompts = rankings(seed)
    whole, n, _ = ranking_loss(scores, ranks, prompts)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    shuffled, n_shuffled, _ = ranking_loss(scores[order], ranks[order], prompts[order])
    torch.testing.assert_close(shuffled, whole)
    first = prompts < 106
    pieces = [ranking_loss(scores[part], ranks[part], prompts[part]) for part in (first, ~first)]
    torch.testing.assert_close(pieces[0][0] + pieces[1][0], whole)
    assert n == n_shuffled == pieces[0][1] + pieces[1][1]


def test_prompts_without_pairs_have_zero_loss():
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    loss_sum, n, metrics = ranking_loss(scores, torch.tensor([1, 1]), torch.tensor([0, 0]))
    loss_sum.backward()
    assert (loss_sum, n) == (0, 0)
    assert scores.grad.tolist() == [0, 0]
    assert metrics["accuracy"].isnan()


def test_ranking_survives_large_margins():
    scores = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss_sum, _, _ = ranking_loss(scores, torch.tensor([1, 2]), torch.tensor([0, 0]))
    loss_sum.backward()
    assert loss_sum == 1000
    assert scores.grad.tolist() == [-1, 1]


def test_half_precision_is_widened_before_it_is_subtracted():
    scores, ranks, prompts = rankings(0)
    halves = scores.bfloat16()
    for ours, wide in (
        (ranking_loss(halves, ranks, prompts), ranking_loss(halves.float(), ranks, prompts)),
        (
            dpo_loss(*(x.bfloat16() for x in pairs(0)), 0.3),
            dpo_loss(*(x.bfloat16().float() for x in pairs(0)), 0.3),
        ),
    ):
        torch.testing.assert_close(ours[0], wide[0], rtol=0, atol=0)


# Losses over tokens


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_nothing_outside_the_mask_matters(name, garbage):
    function, inputs = token_losses(3)[name]
    _, dirty = token_losses(3, garbage)[name]
    clean_logp, dirty_logp = inputs[0].clone().requires_grad_(), dirty[0].clone().requires_grad_()
    clean_sum, n, clean_metrics = function(clean_logp, *inputs[1:])
    dirty_sum, n_dirty, dirty_metrics = function(dirty_logp, *dirty[1:])
    assert dirty_sum.item() == clean_sum.item()
    assert n_dirty == n == inputs[-1].sum()
    assert {k: v.item() for k, v in dirty_metrics.items()} == {
        k: v.item() for k, v in clean_metrics.items()
    }
    assert all(v.isfinite() and not v.requires_grad for v in dirty_metrics.values())
    clean_sum.backward()
    dirty_sum.backward()
    torch.testing.assert_close(dirty_logp.grad, clean_logp.grad, rtol=0, atol=0)
    assert not dirty_logp.grad[~inputs[-1]].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_piece_without_tokens_adds_nothing(name):
    function, inputs = token_losses(3)[name]
    logp = inputs[0].clone().requires_grad_()
    loss_sum, n, _ = function(logp, *inputs[1:-1], torch.zeros_like(inputs[-1]))
    loss_sum.backward()
    assert loss_sum == n == 0
    assert not logp.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_widened(name):
    function, inputs = token_losses(3)[name]
    halves = [x.bfloat16() if x.is_floating_point() else x for x in inputs]
    wide = [x.float() if x.is_floating_point() else x for x in halves]
    torch.testing.assert_close(function(*halves)[0], function(*wide)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds, left=st.integers(0, 3), right=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_padding_order_and_the_cut_of_a_batch_do_not_matter(name, seed, left, right):
    function, inputs = token_losses(seed)[name]
    whole, n, metrics = function(*inputs)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    padded = [F.pad(x, (left, right)) if x.ndim == 2 else x for x in inputs]
    moved, n_moved, metrics_moved = function(*(x[order] for x in padded))
    torch.testing.assert_close(moved, whole)
    assert n_moved == n
    for key in metrics:
        torch.testing.assert_close(metrics_moved[key], metrics[key], equal_nan=True)
    pieces = [function(*(x[rows] for x in inputs)) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(pieces[0][0] + pieces[1][0], whole)
    assert pieces[0][1] + pieces[1][1] == n


@given(seeds, st.floats(0.05, 0.5))
@settings(max_examples=30, deadline=None)
def test_the_surrogate_is_the_pessimistic_one(seed, clip):
    logp, old_logp, advantages, _, mask = rollout(seed)
    loss_sum, _, metrics = policy_loss(logp, old_logp, advantages, mask, clip)
    expected, clipped, ratios = 0.0, 0, []
    for new, old, advantage in zip(
        logp[mask].tolist(), old_logp[mask].tolist(), advantages[mask].tolist(), strict=True
    ):
        ratio = math.exp(new - old)
        limited = min(max(ratio, 1 - clip), 1 + clip)
        expected -= min(ratio * advantage, limited * advantage)
        clipped += limited * advantage < ratio * advantage
        ratios.append(ratio)
    assert loss_sum.item() == pytest.approx(expected)
    assert metrics["clip_fraction"].item() == pytest.approx(clipped / len(ratios))
    assert metrics["ratio_min"].item() == pytest.approx(min(ratios))
    assert metrics["ratio_max"].item() == pytest.approx(max(ratios))
    assert metrics["approx_kl"].item() == pytest.approx(
        sum(r - 1 - math.log(r) for r in ratios) / len(ratios)
    )


def test_where_clipping_decides_the_gradient_vanishes():
    logp = torch.tensor([[0.5, 0.5, -0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss_sum, _, metrics = policy_loss(
        logp, torch.zeros(1, 4), advantages, torch.ones(1, 4, dtype=torch.bool)
    )
    loss_sum.backward()
    assert (logp.grad != 0).tolist() == [[False, True, True, False]]
    assert metrics["clip_fraction"] == 0.5


@pytest.mark.parametrize("moved", [-0.5, 0.5])
def test_the_range_of_the_ratio_is_that_of_what_counts(moved):
    """Ratios all on one side of 1: a masked token, whose ratio would read 1, is neither the least
    nor the largest."""
    logp, mask = torch.tensor([[moved, 2 * moved, 0.0]]), torch.tensor([[True, True, False]])
    _, _, metrics = policy_loss(logp, torch.zeros(1, 3), torch.ones(1, 3), mask)
    ends = sorted([math.exp(moved), math.exp(2 * moved)])
    assert [metrics["ratio_min"].item(), metrics["ratio_max"].item()] == pytest.approx(ends)


def test_before_the_first_update_the_ratio_is_exactly_1():
    logp, _, advantages, _, mask = rollout(5)
    logp = logp.float().requires_grad_()
    loss_sum, n, metrics = policy_loss(logp, logp.detach(), advantages.float(), mask)
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    assert metrics["approx_kl"] == metrics["clip_fraction"] == 0
    assert n == mask.sum()
    loss_sum.backward()
    torch.testing.assert_close(logp.grad, -advantages.float() * mask)


@given(seeds, st.floats(0.05, 0.5))
@settings(max_examples=30, deadline=None)
def test_the_value_loss_takes_the_larger_error(seed, clip):
    values, old_values, returns, _, mask = rollout(seed)
    loss_sum, n, metrics = value_loss(values, old_values, returns, mask, clip)
    expected, decided = 0.0, 0
    for v, old, r in torch.stack([values, old_values, returns], dim=-1)[mask].tolist():
        limited = min(max(v, old - clip), old + clip)
        expected += 0.5 * max((v - r) ** 2, (limited - r) ** 2)
        decided += (limited - r) ** 2 > (v - r) ** 2
    assert loss_sum.item() == pytest.approx(expected)
    assert metrics["clip_fraction"].item() == pytest.approx(decided / n.item())
    explained = 1 - (returns - values)[mask].var() / returns[mask].var()
    assert metrics["explained_variance"].item() == pytest.approx(explained.item())


def test_explained_variance_of_known_values():
    mask = torch.ones(1, 4, dtype=torch.bool)
    returns = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for values, expected in ((returns, 1), (returns + 5, 1), (torch.zeros(1, 4), 0)):
        assert value_loss(values, values, returns, mask)[2][
            "explained_variance"
        ].item() == pytest.approx(expected)
    assert value_loss(returns, returns, torch.ones(1, 4), mask)[2]["explained_variance"].isnan()


# DPO


def pairs(seed, n=6):
    chance = torch.Generator().manual_seed(seed)
    return [-10 * numbers(chance, n).abs() for _ in range(4)]


def test_dpo_before_the_first_update():
    chosen, rejected, _, _ = pairs(0)
    loss_sum, n, metrics = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    assert (loss_sum / n).item() == pytest.approx(math.log(2))
    assert (
        metrics["accuracy"]
        == metrics["margin"]
        == metrics["chosen_reward"]
        == metrics["rejected_reward"]
        == 0
    )
    assert n == 6


@given(seeds, st.floats(0.01, 1), st.floats(0, 0.5))
@settings(max_examples=30, deadline=None)
def test_dpo_pair_by_pair(seed, beta, smoothing):
    chosen, rejected, ref_chosen, ref_rejected = pairs(seed)
    loss_sum, _, metrics = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, smoothing)
    won, lost = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    right, wrong = torch.sigmoid(won - lost), torch.sigmoid(lost - won)
    expected = -(1 - smoothing) * right.log() - smoothing * wrong.log()
    torch.testing.assert_close(loss_sum, expected.sum())
    means = {
        "margin": won - lost,
        "chosen_reward": won,
        "rejected_reward": lost,
        "accuracy": (won > lost).double(),
        "chosen_logp": chosen,
        "rejected_logp": rejected,
    }
    assert metrics.keys() == means.keys()
    for name, values in means.items():
        torch.testing.assert_close(metrics[name], values.mean())


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_dpo_adds_up_over_pairs_in_any_order(seed):
    inputs = pairs(seed)
    whole, n, _ = dpo_loss(*inputs, 0.3, 0.1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    pieces = [dpo_loss(*(x[rows] for x in inputs), 0.3, 0.1) for rows in (order[:2], order[2:])]
    torch.testing.assert_close(pieces[0][0] + pieces[1][0], whole)
    assert pieces[0][1] + pieces[1][1] == n


def test_a_pair_of_coin_flips_is_best_left_alone():
    """Labels that are right half the time say that both answers are as good: the loss is least at
    margin 0."""
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    loss_sum, _, _ = dpo_loss(margin, zero, zero, zero, 1.0, 0.5)
    loss_sum.backward()
    assert margin.grad.item() == 0


def test_each_pair_may_have_its_own_smoothing():
    inputs, smoothing = pairs(2), torch.linspace(0, 0.5, 6, dtype=torch.float64)
    whole, _, _ = dpo_loss(*inputs, 0.3, smoothing)
    single = [
        dpo_loss(*(x[i : i + 1] for x in inputs), 0.3, smoothing[i].item())[0] for i in range(6)
    ]
    torch.testing.assert_close(whole, sum(single))


# GRPO


def test_group_advantages():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    expected = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(group_advantages(rewards), expected / 1.0001)
    torch.testing.assert_close(group_advantages(rewards, normalize=False), expected)
    assert group_advantages(rewards.long().bfloat16()).dtype == torch.float32


@given(seeds, st.floats(-100, 100))
@settings(max_examples=20, deadline=None)
def test_a_constant_added_to_rewards_changes_no_advantage(seed, constant):
    rewards = numbers(torch.Generator().manual_seed(seed), 3, 4)
    for normalise in (True, False):
        moved = group_advantages(rewards + constant, normalise)
        torch.testing.assert_close(moved, group_advantages(rewards, normalise), atol=1e-9, rtol=0)
        torch.testing.assert_close(
            moved.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0
        )


def test_grpo_starts_with_loss_0_and_a_gradient():
    """The advantages of a group of answers of one length cancel; what they pull at does not."""
    logp = rollout(4)[0].requires_grad_()
    mask = torch.ones(4, 6, dtype=torch.bool)
    advantages = group_advantages(torch.tensor([[0.0, 1.0, 2.0, 7.0]], dtype=torch.float64))[0]
    loss_sum, n, metrics = grpo_loss(logp, logp.detach(), None, advantages, mask)
    loss_sum.backward()
    assert (loss_sum / n).item() == pytest.approx(0, abs=1e-12)
    assert n == 24
    assert logp.grad.abs().min() > 0
    assert "kl" not in metrics
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1


def test_the_penalty_pulls_towards_the_reference():
    logp, old_logp, x, _, mask = rollout(6)
    advantages, ref_logp = x[:, 0], old_logp + 0.1
    plain, n, measured = grpo_loss(logp, old_logp, ref_logp, advantages, mask)
    penalised, _, metrics = grpo_loss(logp, old_logp, ref_logp, advantages, mask, beta=0.5)
    delta = (ref_logp - logp)[mask]
    kl = (delta.exp() - 1 - delta).sum()
    torch.testing.assert_close(penalised - plain, 0.5 * kl)
    torch.testing.assert_close(metrics["kl"], kl / n)
    torch.testing.assert_close(measured["kl"], kl / n)
    at_reference = old_logp.clone().requires_grad_()
    loss_sum, _, metrics = grpo_loss(
        at_reference, old_logp, old_logp, torch.zeros_like(advantages), mask, beta=0.5
    )
    loss_sum.backward()
    assert metrics["kl"] == loss_sum == 0
    assert not at_reference.grad.any()


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_every_token_of_an_answer_has_its_advantage(seed):
    logp, old_logp, x, _, mask = rollout(seed)
    grpo, n, metrics = grpo_loss(logp, old_logp, None, x[:, 0], mask, clip=0.1)
    ppo, n_ppo, metrics_ppo = policy_loss(logp, old_logp, x[:, :1].expand_as(logp), mask, clip=0.1)
    assert (grpo, n, metrics) == (ppo, n_ppo, metrics_ppo)
