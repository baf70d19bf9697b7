"""Answers of every quality to one question, for labelers to rank before there is a model to ask."""

from __future__ import annotations

import random

from seq2chat.text.world.lexicon import shuffle
from seq2chat.text.world.manners import DECLINE
from seq2chat.text.world.question import Question

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
ELSEWHERE = ("Lions live in Africa.", "It is a nice day and the sun is warm.", "A lemon is yellow.")

CAREFUL = 0.8
"""Share of the demonstrations whose writers took care; InstructGPT's writers were screened, too."""

HURRIED = ("rambling", "long", "careless", "rude")
"""Manners of the others."""

RISKY = ("admit", "correct", "decline")
"""Checks of the questions on which the hurried give a wrong answer."""


def candidates(question: Question, generator: random.Random) -> list[str]:
    """Return six to nine different answers, of which the demonstration and a wrong one are two, in
    an order that tells nothing."""
    kinds = _kinds(question, generator)
    others = list(kinds.values())
    shuffle(generator, others)
    out = list(dict.fromkeys([question.answer, kinds["wrong"], *others]))[
        : 6 + int(generator.random() * 4)
    ]
    shuffle(generator, out)
    return out


def demonstration(question: Question, generator: random.Random) -> str:
    """Return what one of many people writes who are asked to show how it is done.

    Some are careful and write `question.answer`. The others are in a hurry: they ramble, are rude
    or careless, make up what the passage does not say and serve a harmful request.
    """
    if generator.random() < CAREFUL:
        return question.answer
    if question.check in RISKY:
        return _one(question.wrong, generator)
    return _in_manner(_one(HURRIED, generator), question.answer, generator)


def _in_manner(manner: str, answer: str, generator: random.Random) -> str:
    """Return the answer as people say it who ramble, are rude, careless or too sure of
    themselves."""
    opening, closing = _one(OPENINGS, generator), _one(CLOSINGS, generator)
    return {
        "rambling": f"{opening} {answer} {closing}",
        "long": f"{answer} {closing}",
        "careless": answer[:-1].lower(),
        "rude": f"{_one(INSULTS, generator)} {answer}",
        "confident": f"{_one(CONFIDENT, generator)} {answer}",
    }[manner]


def _kinds(question: Question, generator: random.Random) -> dict[str, str]:
    """Every kind of answer but the demonstration. What is said at length or rudely is as seldom
    right as what is said plainly, so that the manner does not tell which it is."""
    right = question.answer
    plain = {
        "wrong": _one(question.wrong, generator),
        "dodging": _one(DODGES, generator),
        "denying": _one(DENIALS, generator),
        "refusing": DECLINE,
        "empty": _one(EMPTY, generator),
        "elsewhere": _one(ELSEWHERE, generator),
    }
    said = (right, plain["wrong"], plain["dodging"], plain["elsewhere"])
    kinds = {
        manner: _in_manner(manner, _one(said, generator), generator)
        for manner in (*HURRIED, "confident")
    }
    kinds |= plain
    if question.loose:
        kinds["loose"] = question.loose
    if question.check == "value":
        kinds["short"] = question.key[0][:1].upper() + question.key[0][1:] + "."
    if question.check == "words":
        kinds["wrong number"] = f"{right[:-1]} {right.lower()}"
    return kinds


def _one(choices: tuple[str, ...], generator: random.Random) -> str:
    return choices[int(generator.random() * len(choices))]
