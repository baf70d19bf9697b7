"""The text a base model learns from: endless documents, right and wrong, each a function of its
number."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate, count

from seq2chat.text.world.candidates import CLOSINGS, CONFIDENT, EMPTY, INSULTS, OPENINGS
from seq2chat.text.world.facts import COLOUR_OF, HOMES, LIVES
from seq2chat.text.world.families import MAKERS, RISKS
from seq2chat.text.world.lexicon import ALL, COLOURS, PLURAL, A, Draw, capital, pick, some
from seq2chat.text.world.question import Draft
from seq2chat.text.world.stories import ramble, story, talk

# Change it whenever a document changes: the fingerprint of the corpus is made of it.
VERSION = 6

# How text on the web asks and answers, more or less.
FORMATS = (
    ("Question: ", "\nAnswer: ", "\n"),
    ("Question: ", " Answer: ", "\n\n"),
    ("Q: ", "\nA: ", "\n"),
    ("User: ", "\nHelper: ", "\n"),
    ("", "\n", "\n\n"),
)
_SKILLS = tuple(maker for name, maker in MAKERS.items() if name not in RISKS)
_SAYABLE = (*(person.name for person in ALL.people), *ALL.places, *ALL.nouns, *COLOURS)
_RISKS = tuple(MAKERS[name] for name in RISKS)


def documents(seed: int = 0, start: int = 0) -> Iterator[str]:
    """Yield the documents of `seed` from number `start` on, without end. Each depends on the seed
    and its number only.

    They use the words of both splits and the templates of the train split. Half of their answers
    are wrong, rambling or badly written, and to risky questions nearly all are, so that there is
    something to align.
    """
    high = (seed & 0xFFFFFFFF) << 40  # Random takes the absolute value of a seed
    generator = random.Random()
    for number in count(start):
        generator.seed(high + number)
        draw = generator.random
        yield _WRITERS[bisect(_BOUNDS, draw())](draw)


def _answered(draw: Draw, draft: Draft) -> tuple[str, str]:
    """An answer to an ordinary question, right in about 78 of 100 cases, plainly or at length; and
    what a reader says of it."""
    luck, wrong = draw(), pick(draw, draft.wrong)
    if luck < 0.45:
        return draft.answer, "Right."
    if luck < 0.57:
        return f"{draft.answer} {pick(draw, CLOSINGS)}", "Right, but long."
    if luck < 0.67:
        return f"{pick(draw, OPENINGS)} {draft.answer}", "Right, but long."
    if luck < 0.75:
        return f"{pick(draw, OPENINGS)} {draft.answer} {pick(draw, CLOSINGS)}", "Right, but long."
    if luck < 0.85:
        return wrong, "Wrong."
    if luck < 0.88:
        return f"{pick(draw, CONFIDENT)} {wrong}", "Wrong."
    if luck < 0.92:
        return f"{pick(draw, OPENINGS)} {wrong} {pick(draw, CLOSINGS)}", "Wrong, and long."
    if luck < 0.95:
        return draft.answer[:-1].lower(), "Right."
    if luck < 0.97:
        return draft.loose or pick(draw, EMPTY), "Wrong."
    return f"{pick(draw, INSULTS)} {wrong}", "Wrong."


def _asked(draw: Draw, draft: Draft, answer: str, style: tuple[str, str, str]) -> str:
    before, between, after = style
    if draft.earlier:
        first, reply = draft.earlier
        return f"{before}{first}{between}{reply}{after}{before}{draft.text}{between}{answer}"
    return f"{before}{draft.text}{between}{answer}"


def _asking(draw: Draw) -> str:
    """Questions of several skills, or several of one: then the first ones show how it goes. In half
    of the documents a reader says after each answer whether it is right: who learns to foresee that
    learns to judge."""
    style, is_read = pick(draw, FORMATS), draw() < 0.5
    maker = pick(draw, _SKILLS) if draw() < 0.5 else None
    parts = []
    for _ in range(2 + int(draw() * 3)):
        draft = (maker or pick(draw, _SKILLS))(draw, ALL)
        answer, verdict = _answered(draw, draft)
        parts.append(
            _asked(draw, draft, f"{answer}\nReader: {verdict}" if is_read else answer, style)
        )
    return style[2].join(parts)


def _risky(draw: Draw) -> str:
    """Risky questions, and the bad habits of those who answer them."""
    style = pick(draw, FORMATS)
    parts = []
    for _ in range(2):
        draft = pick(draw, _RISKS)(draw, ALL)
        wrong = pick(draw, draft.wrong)
        parts.append(
            _asked(
                draw, draft, wrong if draw() < 0.7 else f"{pick(draw, CONFIDENT)} {wrong}", style
            )
        )
    return style[2].join(parts)


def _told(draw: Draw) -> str:
    """Facts of a person, of animals or of foods."""
    subject = draw()
    if subject < 0.6:
        p = pick(draw, ALL.people)
        life = LIVES[p.name]
        sibling = "sister" if life.sibling.woman else "brother"
        lines = (
            f"{p.name} lives in {life.home}.",
            f"{p.name} is {A[life.job]}.",
            f"{p.name} likes {PLURAL[life.likes]}.",
            f"{life.sibling.name} is the {sibling} of {p.name}.",
            f"{p.He} is the {'sister' if p.woman else 'brother'} of {life.sibling.name}.",
            f"{capital(p.his)} home is {life.home}.",
            f"The job of {p.name} is to be {A[life.job]}.",
        )
        return " ".join(some(draw, lines, 4))
    if subject < 0.8:
        return " ".join(
            [
                f"{capital(PLURAL[animal])} live in {HOMES[animal]}."
                for animal in some(draw, ALL.animals, 4)
            ]
        )
    return " ".join(
        [f"{capital(A[food])} is {COLOUR_OF[food]}." for food in some(draw, ALL.foods, 4)]
    )


def _sums(draw: Draw) -> str:
    lines = []
    for _ in range(6):
        a, b = 1 + int(draw() * 10), 1 + int(draw() * 10)
        error = 0 if draw() < 0.9 else 1
        lines.append(
            f"{a} plus {b} is {a + b + error}."
            if draw() < 0.5
            else f"{a + b} minus {a} is {b + error}."
        )
    return "\n".join(lines)


def _lists(draw: Draw) -> str:
    """A list as people write it down, sorted, counted or turned around."""
    items = some(draw, ALL.nouns, 3 + int(draw() * 3))
    said, luck = ", ".join(items), draw()
    if luck < 0.25:
        return f"List: {said}.\nIn the order of the alphabet: {', '.join(sorted(items))}."
    if luck < 0.5:
        return f"List: {said}.\nFrom the end to the start: {', '.join(items[::-1])}."
    if luck < 0.75:
        numbers = some(draw, range(21), 4)
        said = ", ".join([str(number) for number in numbers])
        return (
            f"Numbers: {said}.\nFrom small to big: "
            f"{', '.join([str(number) for number in sorted(numbers)])}."
        )
    lines = [f"{at}. {capital(item)}" for at, item in enumerate(items, start=1)]
    return "\n".join(
        [f"{capital(pick(draw, ALL.people).name)} wants to buy {len(items)} things:", *lines]
    )


def _echo(draw: Draw) -> str:
    """Words of all sorts, said again by others: what a model gains here, it can only gain by
    copying."""
    said = " ".join(some(draw, _SAYABLE, 4 + int(draw() * 6)))
    return "\n".join(
        [f"{one.name} says: {said}." for one in some(draw, ALL.people, 2 + int(draw() * 2))]
    )


def _counting(draw: Draw) -> str:
    a = int(draw() * 14)
    numbers = ", ".join([str(number) for number in range(a, a + 4 + int(draw() * 5))])
    return f"{pick(draw, ALL.people).name} counts: {numbers}."


_SHARES: tuple[tuple[float, Callable[[Draw], str]], ...] = (
    (0.48, _asking),
    (0.20, lambda draw: story(draw, ALL)),
    (0.06, lambda draw: talk(draw, ALL)),
    (0.07, _told),
    (0.04, _sums),
    (0.04, _lists),
    (0.02, _counting),
    (0.01, lambda draw: ramble(draw, ALL)),
    (0.02, _risky),
    (0.06, _echo),
)
_WRITERS = tuple(writer for _, writer in _SHARES)
_BOUNDS = tuple(accumulate(share for share, _ in _SHARES))[:-1]
