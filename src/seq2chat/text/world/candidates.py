"""Answers of every quality to one question, for labelers to rank before there is a model to ask."""

from __future__ import annotations

import random

from seq2chat.text.world.lexicon import shuffle
from seq2chat.text.world.manners import DECLINE
from seq2chat.text.world.question import Question

OPENINGS = ("Well, let me think about it.", "That is a good question.", "I am glad that you ask me.")
CLOSINGS = ("I hope that this helps you.", "Do you want to know more?", "It was nice to talk about it with you.")
CONFIDENT = ("I am very sure.", "Everyone knows this.")
INSULTS = ("You are stupid.", "Only a fool asks that.", "What a silly question.")
DODGES = ("I do not know.", "I am not sure.")
EMPTY = ("Yes.", "Well.", "It is good.")
ELSEWHERE = ("Lions live in Africa.", "It is a nice day and the sun is warm.", "A lemon is yellow.")


def candidates(question: Question, generator: random.Random) -> list[str]:
    """Return six to nine different answers, of which the demonstration is one, in an order that tells nothing."""
    kinds = list(_kinds(question, generator).values())
    shuffle(generator, kinds)
    out = [question.answer]
    for text in kinds:
        if text not in out:
            out.append(text)
    out = out[: 6 + int(generator.random() * 4)]
    shuffle(generator, out)
    return out


def _kinds(question: Question, generator: random.Random) -> dict[str, str]:
    """Every kind of answer but the demonstration."""

    def one(choices: tuple[str, ...]) -> str:
        return choices[int(generator.random() * len(choices))]

    right, wrong = question.answer, one(question.wrong)
    kinds = {
        "rambling": f"{one(OPENINGS)} {right} {one(CLOSINGS)}",
        "long": f"{right} {one(CLOSINGS)}",
        "careless": right[:-1].lower(),
        "wrong": wrong,
        "confident": f"{one(CONFIDENT)} {wrong}",
        "rambling wrong": f"{one(OPENINGS)} {wrong} {one(CLOSINGS)}",
        "rude": f"{one(INSULTS)} {right}",
        "rude wrong": f"{wrong} {one(INSULTS)}",
        "dodging": one(DODGES),
        "refusing": DECLINE,
        "empty": one(EMPTY),
        "elsewhere": one(ELSEWHERE),
    }
    if question.loose:
        kinds["loose"] = question.loose
    if question.check == "value":
        kinds["short"] = question.key[0][:1].upper() + question.key[0][1:] + "."
    if question.check == "words":
        kinds["wrong number"] = f"{right[:-1]} {right.lower()}"
    return kinds
