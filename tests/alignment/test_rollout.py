"""What counts as an answer that ended, and what one that did not is worth."""

import pytest
import torch

from seq2chat.alignment.policy import load_policy
from seq2chat.alignment.rollout import ended_scores, is_finished, roll_out
from seq2chat.text.chat import END, START
from seq2chat.text.conversations import read_queries


@pytest.fixture(scope="module")
def policy(fine_tuned):
    return load_policy(str(fine_tuned))


def test_only_the_end_of_a_turn_ends_an_answer(policy):
    tokenizer = policy[1]
    words, end, start = (
        tokenizer.encode("Jane lives in Rome."),
        tokenizer.control[END],
        tokenizer.control[START],
    )
    assert is_finished(tokenizer, [*words, end], end)
    assert is_finished(tokenizer, [end], end)
    assert not is_finished(tokenizer, words, end)  # cut off
    assert not is_finished(tokenizer, [*words, tokenizer.eos_id], end)
    assert not is_finished(tokenizer, [*words, start, end], end)
    assert not is_finished(tokenizer, [tokenizer.pad_id, *words, end], end)


def test_answer_without_turn_end_scores_low(policy, monkeypatch):
    """A policy that prefers the end of a text to that of a turn: as PPO's became once, whose judge
    liked it."""
    model, tokenizer = policy
    end, eos, real = tokenizer.control[END], tokenizer.eos_id, type(model).logits

    def swapped(self, hidden):
        logits = real(self, hidden)
        return torch.where(
            torch.arange(logits.shape[-1]) == eos, logits[..., end, None], logits
        ).index_fill(-1, torch.tensor([end]), -1e9)

    prompts = read_queries("world", 12, 7)
    before = roll_out(model, tokenizer, prompts, 40, 1e-3, seed=1)
    monkeypatch.setattr(type(model), "logits", swapped)
    after = roll_out(model, tokenizer, prompts, 40, 1e-3, seed=1)
    assert before.answers == after.answers  # a reader sees no difference
    assert before.finished.any() and not after.finished.any()
    liked = ended_scores(after, torch.full((len(after),), 2.0), 3.0)
    assert torch.equal(liked, torch.full((len(after),), -3.0))
