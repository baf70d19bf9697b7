"""Stories, talks and letters about people, places and things, made from plots."""

from __future__ import annotations

from seq2chat.text.world.facts import COLOR_OF, HOMES, LIVES
from seq2chat.text.world.lexicon import COLORS, PLURAL, A, Draw, Pool, capital, other, pick
from seq2chat.text.world.plots import PLOTS, TALKS

MOODS = ("happy", "sad", "tired", "hungry", "good", "kind")
WEATHER = ("nice", "warm", "cold", "good")
SIZES = ("big", "small", "old", "hungry", "tired")
_CAPITAL = {noun: capital(plural) for noun, plural in PLURAL.items()}


def _slots(draw: Draw, pool: Pool) -> dict[str, object]:
    """Return the words for all slots of a plot, so that its steps agree with each other."""
    p = pick(draw, pool.people)
    life = LIVES[p.name]
    q = other(draw, pool.people, p, life.sibling)
    animal = pick(draw, pool.animals)
    thing = pick(draw, pool.things)
    food = pick(draw, pool.foods)
    task = pick(draw, pool.tasks)
    # At least 2, as all nouns are in the plural.
    rest = 2 + int(draw() * 9)
    k = 2 + int(draw() * 9)
    return {
        "p": p.name,
        "s": p.he,
        "S": p.He,
        "h": p.his,
        "q": q.name,
        "sib": life.sibling.name,
        "family": "sister" if life.sibling.woman else "brother",
        "family2": "sister" if p.woman else "brother",
        "home": life.home,
        "job": life.job,
        "a_job": A[life.job],
        "likes": PLURAL[life.likes],
        "animal": animal,
        "an_animal": A[animal],
        "An_animal": capital(A[animal]),
        "animals": PLURAL[animal],
        "Animals": _CAPITAL[animal],
        "animal_home": HOMES[animal],
        "thing": thing,
        "a_thing": A[thing],
        "food": food,
        "a_food": A[food],
        "foods": PLURAL[food],
        "Foods": _CAPITAL[food],
        "food_color": COLOR_OF[food],
        "land": pick(draw, pool.places),
        "spot": pick(draw, pool.spots),
        "spot2": pick(draw, pool.spots),
        "color": pick(draw, COLORS),
        "mood": pick(draw, MOODS),
        "size": pick(draw, SIZES),
        "weather": pick(draw, WEATHER),
        "task": task.verb,
        "tool": task.tool,
        "rest": rest,
        "k": k,
        "n": rest + k,
    }


def story(draw: Draw, pool: Pool) -> str:
    """Return a story of six or more sentences."""
    steps = [pick(draw, step) for step in pick(draw, PLOTS)]
    return " ".join(steps).format_map(_slots(draw, pool))


def talk(draw: Draw, pool: Pool) -> str:
    """Return a talk between two people, or a letter, with one line per step."""
    steps = [pick(draw, step) for step in pick(draw, TALKS)]
    return "\n".join(steps).format_map(_slots(draw, pool))


def ramble(draw: Draw, pool: Pool) -> str:
    """Return random steps of random plots, as an incoherent writer might."""
    steps = [pick(draw, pick(draw, pick(draw, PLOTS))) for _ in range(4 + int(draw() * 4))]
    return " ".join(steps).format_map(_slots(draw, pool))
