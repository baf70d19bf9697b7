"""Simulated labelers with different tastes, who grade answers from 1 to 7 with noise."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from types import MappingProxyType

from seq2chat.text.world.candidates import candidates
from seq2chat.text.world.oracle import WEIGHTS, gold
from seq2chat.text.world.question import Question

# InstructGPT's labelers gave each answer an overall grade from 1 to 7. Equal grades are ties.
GRADES = 7
# Standard deviation of the noise, in units of utility. With it, two of the training labelers agree
# on 73 % of the pairs.
NOISE = 0.24


@dataclass(frozen=True)
class Labeler:
    """One labeler.

    `weights` are the weights of the parts of `Gold`. A negative weight prefers less of a part, for
    example longer answers.

    The grade of an answer is its utility plus normal noise of standard deviation `noise`, rounded
    to seven grades. Grades of different answers are independent, so that the probability of each
    order of two answers is known.
    """

    name: str
    weights: Mapping[str, float]
    noise: float = NOISE
    held_out: bool = False

    def utility(self, question: Question, answer: str) -> float:
        """Return the labeler's opinion of `answer` without noise, from 0 to 1."""
        parts = gold(question, answer)
        terms = []
        for part, weight in self.weights.items():
            value = getattr(parts, part)
            terms.append(abs(weight) * (value if weight > 0 else 1.0 - value))
        return sum(terms) / sum(abs(weight) for weight in self.weights.values())

    def rank(self, question: Question, answers: Sequence[str], rng: random.Random) -> list[int]:
        """Return the rank of each answer, where 0 is the best.

        Answers with the same grade share a rank, and equal texts have the same grade.
        """
        grades: dict[str, int] = {}
        for answer in dict.fromkeys(answers):
            perceived = self.utility(question, answer) + rng.gauss(0.0, self.noise)
            grades[answer] = min(GRADES - 1, max(0, math.floor(perceived * GRADES)))
        order = sorted(set(grades.values()), reverse=True)
        return [order.index(grades[answer]) for answer in answers]

    def odds(self, question: Question, a: str, b: str) -> tuple[float, float]:
        """Return the probabilities that `a` is ranked above `b`, and that it is ranked below.

        The remaining probability belongs to ties.
        """
        if a == b:
            return 0.0, 0.0
        grades_a = self._grade_probabilities(self.utility(question, a))
        grades_b = self._grade_probabilities(self.utility(question, b))
        above = sum(p * sum(grades_b[:grade]) for grade, p in enumerate(grades_a))
        below = sum(p * sum(grades_a[:grade]) for grade, p in enumerate(grades_b))
        return above, below

    def preference(self, question: Question, a: str, b: str) -> float:
        """Return the probability that `a` is ranked above `b` if they are not tied, and 0.5 for
        equal texts."""
        above, below = self.odds(question, a, b)
        return above / (above + below) if above + below > 0 else 0.5

    def _grade_probabilities(self, utility: float) -> list[float]:
        """Return the probability of each grade."""
        if self.noise == 0:
            grade = min(GRADES - 1, math.floor(utility * GRADES))
            return [float(i == grade) for i in range(GRADES)]
        # The normal distribution function at the bounds between grades.
        cumulative = [0.0]
        for i in range(1, GRADES):
            deviations = (i / GRADES - utility) / self.noise
            cumulative.append(0.5 * (1 + math.erf(deviations / math.sqrt(2))))
        cumulative.append(1.0)
        return [high - low for low, high in pairwise(cumulative)]


def _weights(*values: float) -> Mapping[str, float]:
    return MappingProxyType(dict(zip(WEIGHTS, values, strict=True)))


# correctness, constraint, brevity, form, honesty, harmlessness
_LABELERS = (
    Labeler("careful", WEIGHTS),
    Labeler("strict", _weights(0.35, 0.20, 0.15, 0.20, 0.05, 0.05)),
    Labeler("brief", _weights(0.35, 0.05, 0.35, 0.10, 0.05, 0.10)),
    Labeler("friendly", _weights(0.40, 0.05, -0.05, 0.10, 0.10, 0.30)),
    Labeler("neutral", _weights(0.50, 0.15, 0.0, 0.10, 0.10, 0.15)),
    Labeler("teacher", _weights(0.40, 0.10, 0.10, 0.25, 0.10, 0.05), held_out=True),
    Labeler("guardian", _weights(0.25, 0.05, 0.10, 0.05, 0.25, 0.30), held_out=True),
)


def labelers() -> list[Labeler]:
    """Return all labelers: five for training, including `neutral`, who ignores length, and two held
    out."""
    return list(_LABELERS)


Pair = tuple[Question, str, str]


def pairs(questions: Sequence[Question], rng: random.Random) -> list[Pair]:
    """Return all pairs of some `candidates` of each question, for `agreement` and `ceiling`."""
    return [
        (question, a, b)
        for question in questions
        for a, b in combinations(candidates(question, rng), 2)
    ]


def agreement(one: Labeler, another: Labeler, compared: Sequence[Pair]) -> float:
    """Return the expected share of pairs that both labelers order in the same way, among those that
    neither ties."""
    agreed = 0.0
    ordered = 0.0
    for pair in compared:
        above_1, below_1 = one.odds(*pair)
        above_2, below_2 = another.odds(*pair)
        agreed += above_1 * above_2 + below_1 * below_2
        ordered += (above_1 + below_1) * (above_2 + below_2)
    return agreed / ordered


def ceiling(panel: Sequence[Labeler], compared: Sequence[Pair]) -> float:
    """Return the highest expected accuracy of any reward model on pairs ordered by a random labeler
    of `panel`.

    It is reached by always predicting the more probable order. Ties don't count.
    """
    right = 0.0
    total = 0.0
    for pair in compared:
        odds = [labeler.odds(*pair) for labeler in panel]
        above = sum(a for a, _ in odds)
        below = sum(b for _, b in odds)
        right += max(above, below)
        total += above + below
    return right / total
