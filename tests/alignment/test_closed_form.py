"""Every road of alignment ends in the same place, and in a small world that place is known.

Answers are three tokens of a vocabulary of eight: 512 of them, with a reward each. The policy that
maximises E[r] - β · KL(π ‖ π_ref) is π* ∝ π_ref · exp(r/β) (Rafailov et al. 2023, equation 4).
"""

import itertools

import pytest
import torch

from seq2chat.alignment.advantage import gae, token_rewards, whiten
from seq2chat.alignment.kl import k1
from seq2chat.alignment.objectives import dpo_loss, policy_loss, value_loss

VOCAB, LENGTH = 8, 3
BETA = 0.5
ANSWERS = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
# The prefixes of length 0, 1 and 2 are numbered one after the other; each has eight logits of its
# own.
N_PREFIXES = 1 + VOCAB + VOCAB**2
EVERY_TOKEN = torch.ones(ANSWERS.shape, dtype=torch.bool)


def prefixes(answers):
    first, second, _ = answers.T
    return torch.stack(
        [torch.zeros_like(first), 1 + first, 1 + VOCAB + VOCAB * first + second], dim=1
    )


def token_logp(logits, answers):
    return logits.log_softmax(-1)[prefixes(answers), answers]


@pytest.fixture
def world():
    """The logits of the reference, the rewards of all answers, and the best policy's
    probabilities."""
    chance = torch.Generator().manual_seed(7)
    reference = torch.randn(N_PREFIXES, VOCAB, generator=chance, dtype=torch.float64)
    rewards = torch.randn(len(ANSWERS), generator=chance, dtype=torch.float64)
    best = (token_logp(reference, ANSWERS).sum(1) + rewards / BETA).softmax(0)
    return reference, rewards, best


def distance(logits, best):
    """Total variation: half the summed differences of the probabilities of all answers."""
    return 0.5 * (token_logp(logits, ANSWERS).sum(1).exp() - best).abs().sum().item()


def minimise(loss, start):
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach()


def test_the_world_leaves_something_to_learn(world):
    reference, _, best = world
    assert distance(reference, best) > 0.5


def test_exact_gradient_reaches_the_best_policy(world):
    """The expected sum of the token rewards is the objective, so its gradient is that of log π
    weighted by them."""
    reference, rewards, best = world
    ref_logp = token_logp(reference, ANSWERS)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, 600)
    for _ in range(600):
        logp = token_logp(logits, ANSWERS)
        earned = token_rewards(rewards, k1(logp.detach(), ref_logp), EVERY_TOKEN, BETA).sum(1)
        expected = (logp.detach().sum(1).exp() * earned * logp.sum(1)).sum()
        optimizer.zero_grad()
        (-expected).backward()
        optimizer.step()
        schedule.step()
    assert distance(logits.detach(), best) < 1e-3


def test_dpo_with_exact_preferences_reaches_the_best_policy(world):
    """Every pair is labelled by the probability that Bradley and Terry give its first answer, σ(r_i
    - r_j)."""
    reference, rewards, best = world
    ref_logp = token_logp(reference, ANSWERS).sum(1)
    one, other = torch.triu_indices(len(ANSWERS), len(ANSWERS), offset=1)
    other_wins = torch.sigmoid(rewards[other] - rewards[one])

    def loss(logits):
        logp = token_logp(logits, ANSWERS).sum(1)
        loss_sum, n, _ = dpo_loss(
            logp[one], logp[other], ref_logp[one], ref_logp[other], BETA, other_wins
        )
        return loss_sum / n

    assert distance(minimise(loss, reference), best) < 1e-4


def test_ppo_reaches_the_best_policy(world):
    """Everything of PPO but the transformer: rollouts, rewards of tokens, values, advantages,
    clipped updates.

    Samples, clipping and whitening leave it a little beside; 0.0015 was measured.
    """
    reference, rewards, best = world
    torch.manual_seed(0)
    logits = reference.clone().requires_grad_()
    values = torch.zeros(N_PREFIXES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [logits], "lr": 0.05}, {"params": [values], "lr": 0.1}], eps=1e-5
    )
    iterations = 400
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, iterations)
    mask = EVERY_TOKEN[:1].expand(512, LENGTH)
    for _ in range(iterations):
        probabilities = token_logp(logits, ANSWERS).detach().sum(1).exp()
        chosen = torch.multinomial(probabilities, len(mask), replacement=True)
        answers, states = ANSWERS[chosen], prefixes(ANSWERS[chosen])
        old_logp, old_values = token_logp(logits, answers).detach(), values[states].detach()
        kl = k1(old_logp, token_logp(reference, answers))
        advantages, returns = gae(token_rewards(rewards[chosen], kl, mask, BETA), old_values, mask)
        advantages = whiten(advantages, mask)
        for _ in range(2):
            policy, n, _ = policy_loss(token_logp(logits, answers), old_logp, advantages, mask)
            value, _, _ = value_loss(values[states], old_values, returns, mask)
            optimizer.zero_grad()
            ((policy + value) / n).backward()
            optimizer.step()
        schedule.step()
    assert distance(logits.detach(), best) < 0.01
