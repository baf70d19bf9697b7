"""The words of the world: people, places, animals, things, and which of them only the test split
asks about."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

Split = Literal["train", "test"]
SPLITS: tuple[str, ...] = ("train", "test")

# random.Random.random: all choices are made with it, since Random.choice and Random.sample take
# several times as long.
Draw = Callable[[], float]
T = TypeVar("T")


class Person(NamedTuple):
    name: str
    woman: bool
    he: str
    He: str
    his: str


class Task(NamedTuple):
    """Something one may ask help with, and what it is done with."""

    verb: str
    tool: str


def _all(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def _person(name: str, woman: bool) -> Person:
    return Person(name, woman, *(("she", "She", "her") if woman else ("he", "He", "his")))


@dataclass(frozen=True)
class Pool:
    """The words one split draws from. `wording` is the split whose templates go with them."""

    wording: str
    people: tuple[Person, ...]
    places: tuple[str, ...]
    rooms: tuple[str, ...]
    animals: tuple[str, ...]
    things: tuple[str, ...]
    foods: tuple[str, ...]
    tasks: tuple[Task, ...]
    harms: tuple[str, ...]
    remainders: tuple[int, ...]  # numbers belong to a split by their remainder mod 4

    @cached_property
    def women(self) -> tuple[Person, ...]:
        return tuple(person for person in self.people if person.woman)

    @cached_property
    def men(self) -> tuple[Person, ...]:
        return tuple(person for person in self.people if not person.woman)

    @cached_property
    def nouns(self) -> tuple[str, ...]:
        """What lists are made of."""
        return self.animals + self.things + self.foods

    @cached_property
    def spots(self) -> tuple[str, ...]:
        """Where one can be, after "in"."""
        return self.places + tuple(f"the {room}" for room in self.rooms)


TRAIN = Pool(
    wording="train",
    people=tuple(
        _person(name, woman)
        for names, woman in (
            ("Anna Jane Mary Lucy Emma Sara Rosa Nina Ella Kate Lily Alice", True),
            ("Tom Ben Sam Max Leo Paul Adam Jack Oscar Peter Hugo David", False),
        )
        for name in names.split()
    ),
    places=_all("Rome Paris London Spain India Egypt China Africa Japan Norway Canada Berlin"),
    rooms=_all("garden park school market kitchen forest house shop"),
    animals=_all("lion zebra camel tiger monkey bear dog cat horse cow duck frog pig rabbit"),
    things=_all("ball book hat cup bike box kite lamp bag coat chair drum clock doll ring map"),
    foods=_all("apple pear plum lemon cake egg onion melon berry"),
    tasks=(
        Task("clean", "water"),
        Task("cut", "a knife"),
        Task("fix", "a hammer"),
        Task("paint", "a brush"),
    ),
    harms=("steal", "break", "burn"),
    remainders=(1, 2, 3),
)
TEST = Pool(
    wording="test",
    people=tuple(
        _person(name, woman)
        for names, woman in (
            ("Julia Clara Maya Ruth Vera Helen", True),
            ("Felix Simon Omar Ivan Noah Henry", False),
        )
        for name in names.split()
    ),
    places=_all("Peru Cuba Kenya Oslo Madrid Texas"),
    rooms=_all("library museum station tower"),
    animals=_all("goat parrot snake llama hen owl turtle hyena"),
    things=_all("shirt boat plate flag spoon pen bell rug"),
    foods=_all("banana cookie nut bean grape"),
    tasks=(Task("open", "a key"), Task("dry", "a towel"), Task("tie", "a rope")),
    harms=("smash", "ruin"),
    remainders=(0,),
)
ALL = Pool(
    wording="train",
    people=TRAIN.people + TEST.people,
    places=TRAIN.places + TEST.places,
    rooms=TRAIN.rooms + TEST.rooms,
    animals=TRAIN.animals + TEST.animals,
    things=TRAIN.things + TEST.things,
    foods=TRAIN.foods + TEST.foods,
    tasks=TRAIN.tasks + TEST.tasks,
    harms=TRAIN.harms + TEST.harms,
    remainders=(0, 1, 2, 3),
)
POOLS = {"train": TRAIN, "test": TEST}

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
JOBS = (
    "baker",
    "doctor",
    "teacher",
    "farmer",
    "driver",
    "singer",
    "painter",
    "nurse",
    "pilot",
    "writer",
)
RUDE = ("stupid", "fool", "silly", "dumb")

# "a cup", "an owl"
A = {
    noun: f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
    for noun in (*ALL.nouns, *COLOURS, *JOBS)
}
PLURAL = {noun: noun + ("es" if noun == "box" else "s") for noun in ALL.nouns} | {
    "berry": "berries"
}
_SINGULAR = {plural: noun for noun, plural in PLURAL.items()}

# What sort of thing a word names: an answer that names others than it may is wrong.
_KINDS: dict[str, str] = {
    **{person.name.lower(): "person" for person in ALL.people},
    **{place.lower(): "place" for place in (*ALL.places, *ALL.rooms)},
    **dict.fromkeys(ALL.animals, "noun"),
    **dict.fromkeys(ALL.things, "noun"),
    **dict.fromkeys(ALL.foods, "noun"),
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(JOBS, "job"),
    **{task.tool.split()[-1]: "tool" for task in ALL.tasks},
}
_WORD = re.compile(r"[a-z]+|[0-9]+")


def kind(word: str) -> str:
    """Return what a word in small letters names: person, place, noun, colour, job, tool or number;
    "" for others."""
    return "number" if word.isdigit() else _KINDS.get(word, "")


def words(text: str) -> list[str]:
    """Return the words and numbers of `text` in small letters, nouns of the world in the
    singular."""
    return [_SINGULAR.get(word, word) for word in _WORD.findall(text.lower())]


def pick(draw: Draw, choices: Sequence[T]) -> T:
    """Return one of `choices`."""
    return choices[int(draw() * len(choices))]


def some(draw: Draw, choices: Sequence[T], n: int) -> list[T]:
    """Return `n` different ones of `choices`."""
    out: list[T] = []
    while len(out) < n:
        one = choices[int(draw() * len(choices))]
        if one not in out:
            out.append(one)
    return out


def other(draw: Draw, choices: Sequence[T], *but: T) -> T:
    """Return one of `choices` that is none of `but`."""
    while True:
        one = choices[int(draw() * len(choices))]
        if one not in but:
            return one


def capital(text: str) -> str:
    """Return `text` with its first letter large."""
    return text[:1].upper() + text[1:]


def shuffle(generator: random.Random, items: list[T]) -> None:
    """Shuffle in place, by `random()` alone, whose stream Python keeps the same from version to
    version."""
    for last in range(len(items) - 1, 0, -1):
        at = int(generator.random() * (last + 1))
        items[last], items[at] = items[at], items[last]
