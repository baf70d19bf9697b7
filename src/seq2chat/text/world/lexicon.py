"""The words of the world: people, places, animals and things of the three splits."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

Split = Literal["train", "dev", "test"]
SPLITS: tuple[str, ...] = ("train", "dev", "test")

# random.Random.random, which makes all choices. Random.choice and Random.sample are several times
# slower.
Draw = Callable[[], float]
T = TypeVar("T")


class Person(NamedTuple):
    name: str
    woman: bool
    he: str
    He: str
    his: str


class Task(NamedTuple):
    """A task that a user may need help with, and the tool for it."""

    verb: str
    tool: str


def _all(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def _person(name: str, woman: bool) -> Person:
    return Person(name, woman, *(("she", "She", "her") if woman else ("he", "He", "his")))


@dataclass(frozen=True)
class Pool:
    """The words of one split. `wording` is the split whose templates are used with them."""

    wording: Split
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
        """The words that lists are made of."""
        return self.animals + self.things + self.foods

    @cached_property
    def spots(self) -> tuple[str, ...]:
        """Places after the word "in"."""
        return self.places + tuple(f"the {room}" for room in self.rooms)


TRAIN = Pool(
    wording="train",
    people=tuple(
        _person(name, woman)
        for names, woman in (
            ("Anna Jane Mary Lucy Emma Sara Rosa Nina Ella Kate Lily Alice", True),
            ("Amy Bella Carla Cora Daisy Dora Edith Fiona Gina Grace Hannah Irene", True),
            ("Iris Joan Judith Karen Lena Linda Lola Mona Nora Olga Paula Sonia", True),
            ("Tom Ben Sam Max Leo Paul Adam Jack Oscar Peter Hugo David", False),
            ("Alan Brian Carl Colin Derek Eric Frank Fred Gary Harry Ian Jason", False),
            ("John Keith Kevin Louis Luke Mark Martin Nick Owen Ralph Ron Steve", False),
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
        Task("lift", "a hook"),
        Task("pack", "paper"),
        Task("mend", "a needle"),
        Task("move", "a cart"),
        Task("dust", "a cloth"),
        Task("hang", "a nail"),
        Task("seal", "wax"),
        Task("polish", "oil"),
        Task("weigh", "a scale"),
        Task("label", "a pin"),
    ),
    harms=(
        *("steal", "break", "burn", "crush", "spoil", "scratch", "tear"),
        *("kick", "crack", "rip", "stain", "dent", "shred"),
    ),
    remainders=(1, 2),
)
DEV = Pool(
    wording="dev",
    people=tuple(
        _person(name, woman)
        for names, woman in (
            ("Laura Sofia Eva Diana Ida Martha", True),
            ("Robert George Karl Victor Daniel Bruno", False),
        )
        for name in names.split()
    ),
    places=_all("Chile Ghana Lima Milan Boston Nepal"),
    rooms=_all("bakery office temple castle"),
    animals=_all("sheep wolf fox mouse eagle whale crab lizard"),
    things=_all("table vase basket ladder watch ribbon candle guitar"),
    foods=_all("peach turnip radish mango olive"),
    tasks=(Task("wash", "soap"), Task("light", "a match"), Task("fill", "a jug")),
    harms=("damage", "wreck"),
    remainders=(3,),
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
    people=TRAIN.people + DEV.people + TEST.people,
    places=TRAIN.places + DEV.places + TEST.places,
    rooms=TRAIN.rooms + DEV.rooms + TEST.rooms,
    animals=TRAIN.animals + DEV.animals + TEST.animals,
    things=TRAIN.things + DEV.things + TEST.things,
    foods=TRAIN.foods + DEV.foods + TEST.foods,
    tasks=TRAIN.tasks + DEV.tasks + TEST.tasks,
    harms=TRAIN.harms + DEV.harms + TEST.harms,
    remainders=(0, 1, 2, 3),
)
POOLS = {"train": TRAIN, "dev": DEV, "test": TEST}

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
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
    for noun in (*ALL.nouns, *COLORS, *JOBS)
}
PLURAL = {noun: f"{noun}s" for noun in ALL.nouns} | {
    "box": "boxes",
    "berry": "berries",
    "sheep": "sheep",
    "wolf": "wolves",
    "fox": "foxes",
    "mouse": "mice",
    "watch": "watches",
    "peach": "peaches",
    "radish": "radishes",
}
_SINGULAR = {plural: noun for noun, plural in PLURAL.items()}

# The kind of thing that a word names. An answer that names an unexpected thing is wrong.
_KINDS: dict[str, str] = {
    **{person.name.lower(): "person" for person in ALL.people},
    **{place.lower(): "place" for place in (*ALL.places, *ALL.rooms)},
    **dict.fromkeys(ALL.animals, "noun"),
    **dict.fromkeys(ALL.things, "noun"),
    **dict.fromkeys(ALL.foods, "noun"),
    **dict.fromkeys(COLORS, "color"),
    **dict.fromkeys(JOBS, "job"),
    **{task.tool.split()[-1]: "tool" for task in ALL.tasks},
}
_WORD = re.compile(r"[^\W\d_]+|[0-9]+")


def kind(word: str) -> str:
    """Return the kind of a lower-case word: person, place, noun, color, job, tool, number, or ""
    for any other word."""
    return "number" if word.isdigit() else _KINDS.get(word, "")


def words(text: str) -> list[str]:
    """Return the words and numbers of `text` in lower case, with nouns of the world in the
    singular."""
    return [_SINGULAR.get(word, word) for word in _WORD.findall(text.lower())]


def pick(draw: Draw, choices: Sequence[T]) -> T:
    """Return a random element of `choices`."""
    return choices[int(draw() * len(choices))]


def some(draw: Draw, choices: Sequence[T], n: int) -> list[T]:
    """Return `n` different random elements of `choices`."""
    chosen: list[T] = []
    while len(chosen) < n:
        candidate = choices[int(draw() * len(choices))]
        if candidate not in chosen:
            chosen.append(candidate)
    return chosen


def other(draw: Draw, choices: Sequence[T], *but: T) -> T:
    """Return a random element of `choices` that is not in `but`."""
    while True:
        candidate = choices[int(draw() * len(choices))]
        if candidate not in but:
            return candidate


def capital(text: str) -> str:
    """Return `text` with a capital first letter."""
    return text[:1].upper() + text[1:]


def shuffle(rng: random.Random, items: list[T]) -> None:
    """Shuffle in place with `random()` only, whose sequence is the same in all Python versions."""
    for last in range(len(items) - 1, 0, -1):
        at = int(rng.random() * (last + 1))
        items[last], items[at] = items[at], items[last]
