"""Labelers: people with their own tastes, who grade answers on a scale of seven, with noise."""

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

# InstructGPT's labelers gave each answer an overall grade from 1 to 7; answers with equal grades
# are ties.
GRADES = 7
# Of the grades' noise, in utility; chosen so that two of the training labelers agree on 73 % of the
# pairs.
NOISE = 0.24


@dataclass(frozen=True)
class Labeler:
    """One labeler. `weights` are on the parts of `Gold`; a negative one prefers less of the part,
    such as long answers.

    An answer is perceived as its utility plus normal noise of deviation `noise`, cut into seven
    grades. Grades of different answers are independent, so that the probability of each order of
    two is known.
    """

    name: str
    weights: Mapping[str, float]
    noise: float = NOISE
    held_out: bool = False

    def utility(self, question: Question, answer: str) -> float:
        """Return how good the labeler finds `answer` without noise, from 0 to 1."""
        parts = gold(question, answer)
        total = sum(
            abs(weight) * (getattr(parts, part) if weight > 0 else 1.0 - getattr(parts, part))
            for part, weight in self.weights.items()
        )
        return total / sum(abs(weight) for weight in self.weights.values())

    def rank(
        self, question: Question, answers: Sequence[str], generator: random.Random
    ) -> list[int]:
        """Return the rank of each answer, 0 the best; answers of one grade share a rank, and equal
        texts one grade."""
        grades: dict[str, int] = {}
        for answer in dict.fromkeys(answers):
            perceived = self.utility(question, answer) + generator.gauss(0.0, self.noise)
            grades[answer] = min(GRADES - 1, max(0, math.floor(perceived * GRADES)))
        order = sorted(set(grades.values()), reverse=True)
        return [order.index(grades[answer]) for answer in answers]

    def odds(self, question: Question, a: str, b: str) -> tuple[float, float]:
        """Return the probabilities that `a` is ranked above `b`, and below; the rest is that of a
        tie."""
        if a == b:
            return 0.0, 0.0
        of_a = self._grades(self.utility(question, a))
        of_b = self._grades(self.utility(question, b))
        above = sum(p * sum(of_b[:grade]) for grade, p in enumerate(of_a))
        below = sum(p * sum(of_a[:grade]) for grade, p in enumerate(of_b))
        return above, below

    def preference(self, question: Question, a: str, b: str) -> float:
        """Return the probability that `a` is ranked above `b`, given that they are not tied; 0.5
        for equal texts."""
        above, below = self.odds(question, a, b)
        return above / (above + below) if above + below > 0 else 0.5

    def _grades(self, utility: float) -> list[float]:
        """The probability of each grade."""
        if self.noise == 0:
            grade = min(GRADES - 1, math.floor(utility * GRADES))
            return [float(at == grade) for at in range(GRADES)]
        edges = [
            0.0,
            *(
                0.5 * (1 + math.erf((at / GRADES - utility) / self.noise / math.sqrt(2)))
                for at in range(1, GRADES)
            ),
            1.0,
        ]
        return [high - low for low, high in pairwise(edges)]


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
    """Return the labelers: five that training may ask, of which `neutral` is blind to length, and
    two held out."""
    return list(_LABELERS)


Pair = tuple[Question, str, str]


def pairs(asked: Sequence[Question], generator: random.Random) -> list[Pair]:
    """Return every two of some `candidates` of each question: what agreement and ceiling are
    measured on."""
    return [
        (question, a, b)
        for question in asked
        for a, b in combinations(candidates(question, generator), 2)
    ]


def agreement(one: Labeler, another: Labeler, compared: Sequence[Pair]) -> float:
    """Return the share of the pairs tied by neither that both order alike, in expectation over
    their noise."""
    alike = both = 0.0
    for pair in compared:
        (a, b), (c, d) = one.odds(*pair), another.odds(*pair)
        alike += a * c + b * d
        both += (a + b) * (c + d)
    return alike / both


def ceiling(panel: Sequence[Labeler], compared: Sequence[Pair]) -> float:
    """Return the accuracy that no reward model can exceed, in expectation, on pairs each ordered by
    one of `panel`.

    It is that of always telling the likelier order, where each labeler is asked as often; ties do
    not count.
    """
    right = total = 0.0
    for pair in compared:
        odds = [labeler.odds(*pair) for labeler in panel]
        above, below = sum(a for a, _ in odds), sum(b for _, b in odds)
        right += max(above, below)
        total += above + below
    return right / total
