"""Beside TRL 1.12.0, the last release with PPO: the same inputs, the same losses and gradients."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from seq2chat.alignment.advantage import gae, masked_mean, masked_var, token_rewards, whiten
from seq2chat.alignment.kl import k1
from seq2chat.alignment.objectives import (
    dpo_loss,
    group_advantages,
    grpo_loss,
    policy_loss,
    ranking_loss,
    value_loss,
)
from seq2chat.generation.decode import token_logprobs

PYTHON = os.environ.get("SEQ2CHAT_PARITY_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason=(
        "Set SEQ2CHAT_PARITY_PYTHON to a Python with trl==1.12.0: `python -m venv parity`, "
        "`parity/bin/python -m pip install --group parity`, then parity/bin/python."
    ),
)
VOCAB, BATCH, PROMPT, SEQ = 8, 8, 3, 6
FLOAT32 = 5e-7


def as_array(x):
    return x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def inputs():
    chance = torch.Generator().manual_seed(11)

    def numbers(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=chance, dtype=torch.float64)

    def tokens(*shape):
        return torch.randint(2, VOCAB, shape, generator=chance)

    lengths = torch.tensor([6, 1, 4, 2, 6, 3, 5, 2])
    answer = torch.arange(SEQ) < lengths[:, None]
    whole = torch.cat([torch.zeros(BATCH, PROMPT, dtype=torch.bool), answer], dim=1)
    logits, completion = numbers(BATCH, PROMPT + SEQ, VOCAB), tokens(BATCH, SEQ)
    logp = token_logprobs(logits[:, PROMPT - 1 : -1], completion)

    def rollout(last):
        logp, values = -numbers(BATCH, SEQ).abs(), numbers(BATCH, SEQ)
        return {
            "logp": logp,
            "ref_logp": logp + numbers(BATCH, SEQ, scale=0.3),
            "new_logp": logp + numbers(BATCH, SEQ, scale=0.3),
            "values": values,
            "new_values": values + numbers(BATCH, SEQ, scale=0.3),
            "score": numbers(BATCH),
            "last": last,
            "beta": 0.05,
            "gamma": 0.98,
            "lam": 0.9,
        }

    return {
        "statistics": {"x": numbers(BATCH, SEQ), "mask": answer},
        "ranking": {"scores": numbers(2 * BATCH)},
        "dpo": {
            "tokens": tokens(BATCH, PROMPT + SEQ),
            "mask": whole,
            "logits": numbers(BATCH, PROMPT + SEQ, VOCAB),
            "ref_logits": numbers(BATCH, PROMPT + SEQ, VOCAB),
            "beta": 0.3,
            "smoothing": 0.2,
        },
        "grpo": {
            "prompt": tokens(BATCH, PROMPT),
            "tokens": completion,
            "mask": answer,
            "logits": logits,
            "old_logp": logp + numbers(BATCH, SEQ, scale=0.3),
            "ref_logp": logp + numbers(BATCH, SEQ, scale=0.3),
            "advantages": numbers(BATCH),
            "beta": 0.04,
            "clip": 0.2,
        },
        "group": {"rewards": torch.cat([numbers(3, 4), torch.ones(1, 4, dtype=torch.float64)])},
        "full": rollout(torch.full((BATCH,), SEQ - 1)),
        "ragged": rollout(lengths - 1),
    }


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """The inputs, and what TRL made of them."""
    given = inputs()
    folder = tmp_path_factory.mktemp("trl")
    flat = {
        f"{section}/{key}": as_array(x)
        for section, values in given.items()
        for key, x in values.items()
    }
    np.savez(folder / "given.npz", **flat)
    peer = Path(__file__).parent / "trl_peer.py"
    command = [PYTHON, str(peer), str(folder / "given.npz"), str(folder / "found.npz")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "found.npz") as file:
        flat = {name: torch.from_numpy(file[name]) for name in file.files}
    return given, {
        section: {
            name.split("/")[1]: x for name, x in flat.items() if name.startswith(section + "/")
        }
        for section in given
    }


def same(ours, theirs, tolerance=1e-12):
    """Within rounding of float64, or of float32 where TRL passes through it: metrics, and n / (n -
    1)."""
    ours = torch.as_tensor(ours, dtype=torch.float64)
    theirs = theirs.double()
    difference = (ours - theirs).abs().max().item()
    print(f"largest difference {difference:.1e}")
    assert ours.shape == theirs.shape
    assert difference <= tolerance


def test_statistics(sides):
    given, found = (side["statistics"] for side in sides)
    x, mask = given["x"], given["mask"]
    same(masked_mean(x, mask), found["mean"])
    same(masked_var(x, mask), found["var"], FLOAT32)
    same(masked_var(x, mask, unbiased=False), found["biased_var"])
    # TRL leaves numbers outside the mask, ours are zeros.
    same(whiten(x, mask), found["whitened"] * mask, FLOAT32)
    same(whiten(x, mask, shift_mean=False), found["scaled"] * mask, FLOAT32)


def test_ranking_of_two(sides):
    given, found = (side["ranking"] for side in sides)
    scores = given["scores"].clone().requires_grad_()
    prompts, ranks = torch.arange(BATCH).repeat(2), torch.tensor([1, 2]).repeat_interleave(BATCH)
    loss_sum, n, metrics = ranking_loss(scores, ranks, prompts)
    (loss_sum / n).backward()
    same((loss_sum / n).detach(), found["loss"])
    same(scores.grad, found["gradient"])
    same(metrics["margin"], found["margin"], FLOAT32)
    same(metrics["accuracy"], found["accuracy"], FLOAT32)


def dpo_side(given, smoothing):
    logits = given["logits"].clone().requires_grad_()

    def answer_logp(logits):
        return (token_logprobs(logits[:, :-1], given["tokens"][:, 1:]) * given["mask"][:, 1:]).sum(
            1
        )

    chosen, rejected = answer_logp(logits).chunk(2)
    loss_sum, n, metrics = dpo_loss(
        chosen, rejected, *answer_logp(given["ref_logits"]).chunk(2), given["beta"], smoothing
    )
    return loss_sum, n, metrics, torch.autograd.grad(loss_sum, logits)[0]


def test_dpo(sides):
    given, found = (side["dpo"] for side in sides)
    loss_sum, n, metrics, gradient = dpo_side(given, 0.0)
    same((loss_sum / n).detach(), found["loss"])
    same(gradient / n, found["gradient"])
    same(metrics["chosen_reward"], found["rewards_chosen"], FLOAT32)
    same(metrics["rejected_reward"], found["rewards_rejected"], FLOAT32)
    same(metrics["margin"], found["rewards_margins"], FLOAT32)
    same(metrics["accuracy"], found["rewards_accuracies"], FLOAT32)
    same(metrics["chosen_logp"], found["logps_chosen"], FLOAT32)


def test_dpo_with_label_smoothing(sides):
    given, found = (side["dpo"] for side in sides)
    loss_sum, _, _, gradient = dpo_side(given, given["smoothing"])
    same(loss_sum.detach(), found["smooth"].sum())
    same(gradient, found["smooth_gradient"])


def test_grpo(sides):
    given, found = (side["grpo"] for side in sides)
    logits, mask = given["logits"].clone().requires_grad_(), given["mask"]
    logp = token_logprobs(logits[:, PROMPT - 1 : -1], given["tokens"])
    rest = (
        given["old_logp"],
        given["ref_logp"],
        given["advantages"],
        mask,
        given["clip"],
        given["beta"],
    )
    loss_sum, n, metrics = grpo_loss(logp, *rest)
    (gradient,) = torch.autograd.grad(loss_sum / n, logits)
    for loss_type in ("dapo", "bnpo"):
        same((loss_sum / n).detach(), found[f"{loss_type}_loss"])
        same(gradient, found[f"{loss_type}_gradient"])
    same(metrics["kl"], found["kl"], FLOAT32)
    same(metrics["clip_fraction"], found["clip_fraction"], FLOAT32)
    assert 0 < metrics["clip_fraction"] < 1
    # "grpo" averages over each answer first: another loss, which answers one at a time give.
    rows = [
        grpo_loss(logp[i : i + 1], *(x[i : i + 1] for x in rest[:4]), *rest[4:])
        for i in range(BATCH)
    ]
    same(
        torch.stack([row_sum / row_n for row_sum, row_n, _ in rows]).mean().detach(),
        found["grpo_loss"],
    )


def test_group_advantages(sides):
    given, found = (side["group"] for side in sides)
    same(group_advantages(given["rewards"]), found["group"], FLOAT32)
    same(group_advantages(given["rewards"], normalize=False), found["none"])


UNWHITENED = ("rewards", "returns", "vf_loss", "value_gradient")


def ppo_side(given, reward_mask, value_mask, policy_mask):
    """Rewards, advantages and losses of a rollout, each under its own mask."""
    kl = k1(given["logp"], given["ref_logp"]).where(policy_mask, 0)
    rewards = token_rewards(given["score"], kl, reward_mask, given["beta"])
    advantages, returns = gae(rewards, given["values"], value_mask, given["gamma"], given["lam"])
    advantages = whiten(advantages, policy_mask)
    logp, values = (given[name].clone().requires_grad_() for name in ("new_logp", "new_values"))
    policy_sum, n, policy = policy_loss(logp, given["logp"], advantages, policy_mask)
    value_sum, n_values, value = value_loss(values, given["values"], returns, value_mask)
    return {
        "rewards": rewards,
        "advantages": advantages,
        "returns": returns,
        "pg_loss": (policy_sum / n).detach(),
        "vf_loss": (value_sum / n_values).detach(),
        "pg_clipfrac": policy["clip_fraction"],
        "vf_clipfrac": value["clip_fraction"],
        "policy_gradient": torch.autograd.grad(policy_sum / n, logp)[0],
        "value_gradient": torch.autograd.grad(value_sum / n_values, values)[0],
    }


def test_ppo_of_answers_of_one_length(sides):
    given, found = (side["full"] for side in sides)
    everything = torch.ones(BATCH, SEQ, dtype=torch.bool)
    ours = ppo_side(given, everything, everything, everything)
    for name in ours:
        print(name, end=": ")
        same(ours[name], found[name], 1e-12 if name in UNWHITENED else FLOAT32)


def test_ppo_of_answers_of_many_lengths(sides):
    """TRL pays the score one position behind a short answer, at its first padding, and counts the
    value there; ours is paid at the last token. Given that longer mask, ours is TRL's."""
    given, found = (side["ragged"] for side in sides)
    answer = torch.arange(SEQ) <= given["last"][:, None]
    one_more = torch.arange(SEQ) <= given["last"][:, None] + 1
    ours = ppo_side(given, one_more, one_more, answer)
    for name in ours:
        print(name, end=": ")
        same(ours[name], found[name], 1e-12 if name in UNWHITENED else FLOAT32)
    at_the_end = ppo_side(given, answer, answer, answer)["rewards"]
    torch.testing.assert_close(at_the_end.sum(1), found["rewards"].sum(1))
    assert not torch.equal(at_the_end, found["rewards"])
