"""The facts of the world, the same in every document: who lives where, whose sister is who, what
colour a lemon is."""

import random
from typing import NamedTuple

from seq2chat.text.world.lexicon import JOBS, TEST, TRAIN, Person, Pool, shuffle

WORLD_SEED = 2022


class Life(NamedTuple):
    """What is always so of a person."""

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
}
COLOUR_OF = {
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
    **{"bean": "green", "grape": "blue"},
}


def _lives(pool: Pool, generator: random.Random) -> dict[str, Life]:
    """Give each person a home, a job and a food, and pair them as brothers and sisters."""
    people = list(pool.people)
    shuffle(generator, people)
    lives = {}
    for at, person in enumerate(people):
        home = pool.places[int(generator.random() * len(pool.places))]
        job = JOBS[int(generator.random() * len(JOBS))]
        food = pool.foods[int(generator.random() * len(pool.foods))]
        lives[person.name] = Life(home, job, food, people[at ^ 1])
    return lives


def _all_lives() -> dict[str, Life]:
    generator = random.Random(WORLD_SEED)
    return _lives(TRAIN, generator) | _lives(TEST, generator)


# Facts of a split name words of that split only, so that its questions do too.
LIVES = _all_lives()
