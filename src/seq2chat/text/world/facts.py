"""The facts of the world, which are the same in every document: for example homes, jobs, siblings,
and the color of a lemon."""

import random
from typing import NamedTuple

from seq2chat.text.world.lexicon import DEV, JOBS, TEST, TRAIN, Person, Pool, shuffle

WORLD_SEED = 2022


class Life(NamedTuple):
    """The fixed facts about a person."""

    home: str
    job: str
    likes: str
    sibling: Person


HOMES = {
    **{
        "lion": "Africa",
        "zebra": "Africa",
        "camel": "Egypt",
        "tiger": "India",
        "monkey": "India",
        "bear": "Canada",
    },
    **{
        "dog": "London",
        "cat": "Paris",
        "horse": "Spain",
        "cow": "Norway",
        "duck": "Japan",
        "frog": "China",
    },
    **{
        "pig": "Rome",
        "rabbit": "Berlin",
        "goat": "Peru",
        "parrot": "Cuba",
        "snake": "Texas",
        "llama": "Peru",
    },
    **{"hen": "Madrid", "owl": "Oslo", "turtle": "Cuba", "hyena": "Kenya"},
    **{"sheep": "Chile", "wolf": "Nepal", "fox": "Milan", "mouse": "Boston"},
    **{"eagle": "Nepal", "whale": "Chile", "crab": "Lima", "lizard": "Ghana"},
}
COLOR_OF = {
    **{
        "apple": "red",
        "pear": "green",
        "plum": "blue",
        "lemon": "yellow",
        "cake": "brown",
        "egg": "white",
    },
    **{
        "onion": "white",
        "melon": "green",
        "berry": "black",
        "banana": "yellow",
        "cookie": "brown",
        "nut": "brown",
    },
    **{"bean": "green", "grape": "blue", "peach": "pink", "turnip": "white"},
    **{"radish": "red", "mango": "yellow", "olive": "green"},
}


def _lives(pool: Pool, rng: random.Random) -> dict[str, Life]:
    """Return a home, a job and a favorite food for each person, and pair them as siblings."""
    people = list(pool.people)
    shuffle(rng, people)
    lives = {}
    for at, person in enumerate(people):
        home = pool.places[int(rng.random() * len(pool.places))]
        job = JOBS[int(rng.random() * len(JOBS))]
        food = pool.foods[int(rng.random() * len(pool.foods))]
        lives[person.name] = Life(home, job, food, people[at ^ 1])
    return lives


def _all_lives() -> dict[str, Life]:
    rng = random.Random(WORLD_SEED)
    return _lives(TRAIN, rng) | _lives(DEV, rng) | _lives(TEST, rng)


# Facts of a split use only words of that split, so that its questions do, too.
LIVES = _all_lives()
