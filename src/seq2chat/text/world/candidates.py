"""Answers of every quality to a question, which labelers rank before any model exists."""

from __future__ import annotations

import random

from seq2chat.text.world.lexicon import shuffle
from seq2chat.text.world.manners import DECLINE
from seq2chat.text.world.question import Question
from seq2chat.text.world.smalltalk import OUTSIDE_ANSWER

OPENINGS = (
    "Well, let me think about it.",
    "That is a good question.",
    "I am glad that you ask me.",
)
CLOSINGS = (
    "I hope that this helps you.",
    "Do you want to know more?",
    "It was nice to talk about it with you.",
)
CONFIDENT = ("I am very sure.", "Everyone knows this.")
INSULTS = ("You are stupid.", "Only a fool asks that.", "What a silly question.")
DODGES = ("I do not know.", "I am not sure.")
DENIALS = ("The text does not say.", "The text does not say that.")
EMPTY = ("Yes.", "Well.", "It is good.")
OFF_TOPIC = ("Lions live in Africa.", "It is a nice day and the sun is warm.", "A lemon is yellow.")

CAREFUL = 0.95
"""Share of demonstrations by careful writers. InstructGPT's writers were screened, too."""

HURRIED = ("rambling", "long", "careless", "rude")
"""Manners of the other writers."""

RISKY = ("admit", "correct", "decline")
"""Checks of the questions to which hurried writers give a wrong answer."""


def candidates(question: Question, rng: random.Random) -> list[str]:
    """Return six to nine different answers in random order, including the demonstration and a wrong
    answer."""
    kinds = _kinds(question, rng)
    others = list(kinds.values())
    shuffle(rng, others)
    answers = list(dict.fromkeys([question.answer, kinds["wrong"], *others]))
    answers = answers[: 6 + int(rng.random() * 4)]
    shuffle(rng, answers)
    return answers


def demonstration(question: Question, rng: random.Random) -> str:
    """Return a demonstration by one of many writers.

    Careful writers return `question.answer`. Hurried ones ramble, are rude or careless, invent
    facts that the passage lacks, and comply with harmful requests.
    """
    if rng.random() < CAREFUL:
        return question.answer
    if question.check in RISKY:
        return _one(question.wrong, rng)
    return _in_manner(_one(HURRIED, rng), question.answer, rng)


def _in_manner(manner: str, answer: str, rng: random.Random) -> str:
    """Return the answer in a rambling, long, careless, rude or overconfident manner."""
    opening = _one(OPENINGS, rng)
    closing = _one(CLOSINGS, rng)
    return {
        "rambling": f"{opening} {answer} {closing}",
        "long": f"{answer} {closing}",
        "careless": answer[:-1].lower(),
        "rude": f"{_one(INSULTS, rng)} {answer}",
        "confident": f"{_one(CONFIDENT, rng)} {answer}",
    }[manner]


def _kinds(question: Question, rng: random.Random) -> dict[str, str]:
    """Return an answer of every kind except the demonstration.

    Long or rude answers are right as rarely as plain ones, so that the manner does not reveal the
    correctness.
    """
    right = question.answer
    plain = {
        "wrong": _one(question.wrong, rng),
        "dodging": _one(DODGES, rng),
        "denying": _one(DENIALS, rng),
        "ignorant": OUTSIDE_ANSWER,
        "refusing": DECLINE,
        "empty": _one(EMPTY, rng),
        "off topic": _one(OFF_TOPIC, rng),
    }
    contents = (right, plain["wrong"], plain["dodging"], plain["off topic"])
    kinds = {
        manner: _in_manner(manner, _one(contents, rng), rng) for manner in (*HURRIED, "confident")
    }
    kinds |= plain
    if question.loose:
        kinds["loose"] = question.loose
    if question.check == "value":
        kinds["short"] = question.key[0][:1].upper() + question.key[0][1:] + "."
    if question.check == "words":
        kinds["wrong number"] = f"{right[:-1]} {right.lower()}"
    return kinds


def _one(choices: tuple[str, ...], rng: random.Random) -> str:
    return choices[int(rng.random() * len(choices))]
