"""Labelers differ as people do, and how they differ is known exactly."""

import dataclasses
import random
from functools import cache
from itertools import combinations

import pytest

from seq2chat.text.world import (
    WEIGHTS,
    Question,
    agreement,
    candidates,
    ceiling,
    gold,
    labelers,
    pairs,
    questions,
)

TRAINING = [labeler for labeler in labelers() if not labeler.held_out]
HELD_OUT = [labeler for labeler in labelers() if labeler.held_out]
N = 1500
by_name = {labeler.name: labeler for labeler in labelers()}


@cache
def compared(split: str) -> list[tuple[Question, str, str]]:
    return pairs(questions(split, 42, seed=6), random.Random(6))


def test_training_labelers_agree_as_instructgpts_did():
    found = [agreement(one, other, compared("train")) for one, other in combinations(TRAINING, 2)]
    assert 0.71 < sum(found) / len(found) < 0.75
    assert min(found) > 0.66 and max(found) < 0.80


def test_held_out_labelers_agree_about_as_much():
    for split in ("train", "test"):
        found = [agreement(one, other, compared(split)) for one in TRAINING for other in HELD_OUT]
        assert 0.68 < sum(found) / len(found) < 0.76


def test_agreement_in_expectation_is_agreement_counted():
    generator = random.Random(0)
    alike = 0
    both = 0
    one, other = TRAINING[:2]
    for question, a, b in compared("train"):
        (p, q) = one.rank(question, [a, b], generator)
        (r, s) = other.rank(question, [a, b], generator)
        alike += (p < q) == (r < s) and p != q and r != s
        both += p != q and r != s
    assert alike / both == pytest.approx(agreement(one, other, compared("train")), abs=0.03)


def test_no_rule_exceeds_the_ceiling():
    generator = random.Random(2)
    panel = TRAINING
    best = gold_right = count = 0
    for question, a, b in compared("train") * 2:
        likelier = (
            sum(
                labeler.odds(question, a, b)[0] - labeler.odds(question, a, b)[1]
                for labeler in panel
            )
            > 0
        )
        first, second = generator.choice(panel).rank(question, [a, b], generator)
        if first != second:
            best += likelier == (first < second)
            gold_right += (gold(question, a).score > gold(question, b).score) == (first < second)
            count += 1
    bound = ceiling(panel, compared("train"))
    assert best / count == pytest.approx(bound, abs=0.03) and gold_right / count < bound + 0.02
    exact = [dataclasses.replace(panel[0], noise=0.0)]
    assert ceiling(exact, compared("train")) == 1.0


@pytest.mark.parametrize("labeler", labelers(), ids=lambda labeler: labeler.name)
def test_preference_is_the_frequency_of_rankings(labeler):
    generator = random.Random(9)
    question, a, b = compared("train")[7]
    assert gold(question, a).score != gold(question, b).score
    above = below = 0
    for _ in range(N):
        # The third answer changes nothing between the other two.
        first, _, second = labeler.rank(question, [a, "Lions live in Africa.", b], generator)
        above += first < second
        below += first > second
    assert above / (above + below) == pytest.approx(labeler.preference(question, a, b), abs=0.05)
    assert (above / N, below / N) == pytest.approx(labeler.odds(question, a, b), abs=0.05)


@pytest.mark.parametrize("labeler", labelers(), ids=lambda labeler: labeler.name)
def test_preferences_of_a_pair_are_complements(labeler):
    """Equal texts always tie."""
    for question, a, b in compared("train")[:30]:
        assert labeler.preference(question, a, b) + labeler.preference(
            question, b, a
        ) == pytest.approx(1)
    assert labeler.preference(question, a, a) == 0.5 and labeler.odds(question, a, a) == (0.0, 0.0)
    generator = random.Random(0)
    for _ in range(50):
        ranks = labeler.rank(question, [a, b, a], generator)
        assert ranks[0] == ranks[2]


def test_ranks_begin_at_zero_and_skip_none():
    generator = random.Random(3)
    ties = 0
    for question in questions("train", 42):
        ranks = TRAINING[0].rank(question, candidates(question, generator), generator)
        assert sorted(set(ranks)) == list(range(max(ranks) + 1))
        ties += len(ranks) - len(set(ranks))
    assert ties > 42, "a scale of seven ties some of six to nine answers"


@pytest.mark.parametrize("labeler", labelers(), ids=lambda labeler: labeler.name)
def test_without_noise_a_labeler_orders_by_utility(labeler):
    exact = dataclasses.replace(labeler, noise=0.0)
    for question in questions("test", 21):
        answers = candidates(question, random.Random(1))
        ranks = exact.rank(question, answers, random.Random(1))
        for i, j in combinations(range(len(answers)), 2):
            if ranks[i] < ranks[j]:
                assert exact.utility(question, answers[i]) > exact.utility(question, answers[j])
                assert exact.preference(question, answers[i], answers[j]) == 1.0
            assert 0.0 <= exact.utility(question, answers[i]) <= 1.0


def test_tastes_for_length_differ():
    question = questions("train", 1, families=["where"])[0]
    long = f"{question.answer} I hope that this helps you and all of your friends too."
    change = {
        one.name: one.utility(question, long) - one.utility(question, question.answer)
        for one in labelers()
    }
    assert change["brief"] < change["careful"] < 0 == change["neutral"] < change["friendly"]


def test_the_careful_labeler_holds_the_gold_weights():
    assert by_name["careful"].weights == WEIGHTS
    question, a, _ = compared("train")[0]
    assert by_name["careful"].utility(question, a) == pytest.approx(gold(question, a).score)


def test_there_are_five_labelers_and_two_held_out():
    assert len(TRAINING) == 5 and len(HELD_OUT) == 2
