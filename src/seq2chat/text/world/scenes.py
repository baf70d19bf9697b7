"""Scenes: a few statements about people, and the questions that they answer.

They are the common part of the reading families and of the pretraining text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seq2chat.text.world.lexicon import (
    COLORS,
    PLURAL,
    A,
    Draw,
    Person,
    Pool,
    Split,
    other,
    pick,
    some,
)
from seq2chat.text.world.wordings import Wordings, questions


class Relation(NamedTuple):
    """A verb, its base form, and the kind of its object."""

    verb: str
    base: str
    of: str


IN = Relation("is in", "be in", "spot")
COUNT = Relation("has", "have", "count")
RELATIONS = (
    Relation("has", "have", "thing"),
    Relation("holds", "hold", "thing"),
    Relation("sees", "see", "animal"),
    Relation("buys", "buy", "food"),
)
ALL_RELATIONS = (IN, IN, *RELATIONS, COUNT)

WHAT: Wordings = {
    "train": questions(
        ("What does {p} {base}?", "And what does {p} {base}?", "{p} {verb} what?"),
        "what {p} {verb}",
    ),
    "dev": ("Do you know what {p} {verb}?", "I want to know what {p} {verb}."),
    "test": ("What is it that {p} {verb}?", "Please say what {p} {verb}."),
}
WHO: Wordings = {
    "train": questions(
        (
            "Who {verb} {what}?",
            "Which person {verb} {what}?",
            "Who is the one that {verb} {what}?",
            "Name the person who {verb} {what}.",
        ),
        "who {verb} {what}",
    ),
    "dev": ("Do you know who {verb} {what}?", "I want to know who {verb} {what}."),
    "test": ("Who is it that {verb} {what}?", "Please say who {verb} {what}."),
}
WHERE: Wordings = {
    "train": questions(
        ("Where is {p}?", "Where is {p} now?", "In what place is {p}?", "Where can I see {p}?"),
        "where {p} is",
    ),
    "dev": ("Do you know where {p} is?", "I want to know where {p} is."),
    "test": ("Where can I find {p}?", "Please say where {p} is."),
}
HOW_MANY: Wordings = {
    "train": questions(
        ("How many {what} does {p} have?", "{p} has how many {what}?"),
        "how many {what} {p} has",
    ),
    "dev": ("Do you know how many {what} {p} has?", "I want to know how many {what} {p} has."),
    "test": ("Please say how many {what} {p} has.", "What number of {what} does {p} have?"),
}


@dataclass(frozen=True)
class Fact:
    """One statement. `what` is its object with an article, and `key` the words that name it."""

    person: Person
    relation: Relation
    what: str
    key: str

    @property
    def text(self) -> str:
        return f"{self.person.name} {self.relation.verb} {self.what}."

    def with_object(self, other_fact: Fact) -> str:
        """Return the statement with the object of another fact."""
        return f"{self.person.name} {self.relation.verb} {other_fact.what}."


def an_object(draw: Draw, pool: Pool, of: str) -> tuple[str, str]:
    """Return a random object of the kind `of` with its article, and the words that name it."""
    if of == "spot":
        spot = pick(draw, pool.spots)
        return spot, spot
    if of == "count":
        n = 2 + int(draw() * 11)
        return f"{n} {PLURAL[pick(draw, pool.nouns)]}", str(n)
    if of == "thing":
        name = f"{pick(draw, COLORS)} {pick(draw, pool.things)}"
        return f"a {name}", name
    name = pick(draw, pool.animals if of == "animal" else pool.foods)
    return A[name], name


def scene(draw: Draw, pool: Pool, n: int, relation: Relation, same: float = 0.75) -> list[Fact]:
    """Return facts about `n` different people with different objects, in random order.

    The first two have the same `relation`, so that a reader has to tell the people apart, and so
    have the others with probability `same`. The first fact of the result is the one to ask about.
    """
    facts: list[Fact] = []
    for at, person in enumerate(some(draw, pool.people, n)):
        kind = relation if at < 2 or draw() < same else pick(draw, ALL_RELATIONS)
        what, key = an_object(draw, pool, kind.of)
        while any(what == fact.what or key == fact.key for fact in facts):
            what, key = an_object(draw, pool, kind.of)
        facts.append(Fact(person, kind, what, key))
    return facts


def ask(draw: Draw, split: Split, fact: Fact, about: str = "") -> tuple[str, str]:
    """Return a question that `fact` answers, and its wording: about the person ("who"), or about
    the object."""
    slots = {"p": fact.person.name, "verb": fact.relation.verb, "base": fact.relation.base}
    if about == "who":
        wordings = WHO
        slots["what"] = fact.what
    elif fact.relation == COUNT:
        wordings = HOW_MANY
        slots["what"] = fact.what.split()[1]
    else:
        wordings = WHERE if fact.relation == IN else WHAT
    wording = pick(draw, wordings[split])
    return wording.format(**slots), wording


def told(draw: Draw, lines: Sequence[str]) -> str:
    """Return the statements in random order."""
    return " ".join([lines[at] for at in some(draw, range(len(lines)), len(lines))])


def denial(person: Person, relation: Relation) -> str:
    """Return the answer to a question that the passage leaves open."""
    what = f"where {person.name} is" if relation == IN else f"what {person.name} {relation.verb}"
    return f"The text does not say {what}."


def another(draw: Draw, pool: Pool, fact: Fact, facts: list[Fact]) -> str:
    """Return a false statement about the person of `fact`, with an object of no fact."""
    taken = {f.what for f in facts}
    what, _ = an_object(draw, pool, fact.relation.of)
    while what in taken:
        what, _ = an_object(draw, pool, fact.relation.of)
    return f"{fact.person.name} {fact.relation.verb} {what}."


def stranger(draw: Draw, pool: Pool, facts: list[Fact]) -> Person:
    """Return a person of no fact."""
    return other(draw, pool.people, *(fact.person for fact in facts))
