"""The pretraining text of the world: an endless sequence of documents, each a function of its
number."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate, count

from seq2chat.text.world.candidates import CLOSINGS, CONFIDENT, EMPTY, INSULTS, OPENINGS
from seq2chat.text.world.facts import COLOR_OF, HOMES, LIVES
from seq2chat.text.world.families import MAKERS, READING, RISKS
from seq2chat.text.world.lexicon import (
    ALL,
    COLORS,
    PLURAL,
    A,
    Draw,
    Person,
    capital,
    other,
    pick,
    some,
)
from seq2chat.text.world.passages import FRAMES
from seq2chat.text.world.question import Draft
from seq2chat.text.world.scenes import (
    ALL_RELATIONS,
    COUNT,
    IN,
    RELATIONS,
    Fact,
    ask,
    denial,
    scene,
    stranger,
    told,
)
from seq2chat.text.world.stories import ramble, story, talk

# Change it with every change of a document, as it is the fingerprint of the corpus.
VERSION = 10

# Formats of questions and answers, similar to text on the web. In half of them, answers begin a
# line, as they do in a chat, so that names without a space before them become tokens, too.
FORMATS = (
    ("Question: ", "\nAnswer: ", "\n"),
    ("Q: ", "\nA: ", "\n"),
    ("User: ", "\nHelper: ", "\n"),
    ("", "\n", "\n\n"),
    ("", "\n\n", "\n\n"),
    ("Question:\n", "\nAnswer:\n", "\n"),
)
# Greetings and questions about the model are left to the demonstrations.
_ALIGNED = ("greeting", "identity", "outside")
# Questions that most passages answer have documents of their own, see `_reading`.
_SKILLS = tuple(
    maker for name, maker in MAKERS.items() if name not in (*RISKS, *_ALIGNED, *READING)
)
# Some skills take more practice than others.
_HARD = (
    *("copy", "reverse", "sort_words", "sort_numbers", "count_up"),
    *("two_steps", "pronoun", "exact_words", "fact"),
)
_ASKED = (*_SKILLS, *(MAKERS[name] for name in (*_HARD, *_HARD)))
GOOD = ("That is good.", "That is a good thing to do.", "To {verb} a thing is good work.")
BAD = (
    "That is bad.",
    "That is a bad thing to do.",
    "To {verb} a thing is wrong.",
    "That hurts people.",
)
UNANSWERED = 0.15
"""Share of questions of reading documents whose answer the passage lacks."""
_WORDS = (*(person.name for person in ALL.people), *ALL.places, *ALL.nouns, *COLORS)
_RISKS = tuple(MAKERS[name] for name in RISKS if name not in _ALIGNED)


def documents(seed: int = 0, start: int = 0) -> Iterator[str]:
    """Yield the documents of `seed` from number `start` on, without end.

    Each is a function of the seed and its number. They use the words of all splits and the wordings
    of the training split. Many answers are wrong, rambling or badly written, and nearly all answers
    to risky questions are wrong, so that alignment has something to improve.
    """
    high = (seed & 0xFFFFFFFF) << 40  # Random takes the absolute value of a seed
    rng = random.Random()
    for number in count(start):
        rng.seed(high + number)
        draw = rng.random
        yield _WRITERS[bisect(_BOUNDS, draw())](draw)


def _answer(draw: Draw, draft: Draft) -> str:
    """Return an answer to an ordinary question, which is right in about 90 of 100 cases."""
    u = draw()
    if u < 0.72:
        return draft.answer
    if u < 0.77:
        return f"{draft.answer} {pick(draw, CLOSINGS)}"
    if u < 0.82:
        return f"{pick(draw, OPENINGS)} {draft.answer}"
    if u < 0.85:
        return f"{pick(draw, OPENINGS)} {draft.answer} {pick(draw, CLOSINGS)}"
    if u < 0.90:
        return draft.answer[:-1].lower()
    wrong = pick(draw, draft.wrong)
    if u < 0.93:
        return wrong
    if u < 0.95:
        return f"{pick(draw, CONFIDENT)} {wrong}"
    if u < 0.97:
        return f"{pick(draw, OPENINGS)} {wrong} {pick(draw, CLOSINGS)}"
    if u < 0.98:
        return draft.loose or pick(draw, EMPTY)
    return f"{pick(draw, INSULTS)} {wrong}"


def _exchange(draw: Draw, draft: Draft, answer: str, style: tuple[str, str, str]) -> str:
    before, between, after = style
    if draft.earlier:
        first, reply = draft.earlier
        return f"{before}{first}{between}{reply}{after}{before}{draft.text}{between}{answer}"
    return f"{before}{draft.text}{between}{answer}"


def _reading(draw: Draw) -> str:
    """Return a passage with several questions and right answers, in one of the formats.

    The answers can only be predicted by looking them up. Several questions per passage make such
    tokens frequent enough for a model to learn it (docs/log.md). A careful writer also says where
    the passage has no answer.
    """
    before, between, after = pick(draw, FORMATS)
    facts = scene(draw, ALL, 2 + int(draw() * 4), pick(draw, ALL_RELATIONS))
    lines = [fact.text for fact in facts]
    friend = stranger(draw, ALL, facts)
    asked = [_asked(draw, facts, friend) for _ in range(2 + int(draw() * 4))]
    if facts[0].relation == IN and draw() < 0.5:
        lines.append(f"{friend.name} is with {facts[0].person.name}.")
        follows = Fact(friend, IN, facts[0].what, facts[0].key)
        asked.insert(int(draw() * (len(asked) + 1)), (ask(draw, "train", follows)[0], follows.text))
    passage = told(draw, lines)
    repeats = draw() < 0.3
    parts = []
    for at, (question, answer) in enumerate(asked):
        if at == 0 or repeats:
            question = pick(draw, FRAMES["train"]).format(passage=passage, question=question)
        parts.append(f"{before}{question}{between}{answer}")
    return after.join(parts)


def _asked(draw: Draw, facts: list[Fact], friend: Person) -> tuple[str, str]:
    """Return a question about a scene, and its answer. It is not about `friend`."""
    fact = pick(draw, facts)
    if draw() >= UNANSWERED:
        about = "who" if fact.relation != COUNT and draw() < 0.4 else ""
        return ask(draw, "train", fact, about)[0], fact.text
    relation = pick(draw, (IN, IN, *RELATIONS))
    person = fact.person
    if relation.verb == fact.relation.verb or draw() < 0.5:
        person = other(draw, ALL.people, friend, *(f.person for f in facts))
    question, _ = ask(draw, "train", Fact(person, relation, "", ""))
    return question, denial(person, relation)


def _exchanges(draw: Draw) -> str:
    """Return questions with answers, of several skills or of one.

    Several of one skill are examples of how to answer the last ones.
    """
    style = pick(draw, FORMATS)
    maker = pick(draw, _ASKED) if draw() < 0.5 else None
    parts = []
    for _ in range(2 + int(draw() * 3)):
        draft = (maker or pick(draw, _ASKED))(draw, ALL)
        parts.append(_exchange(draw, draft, _answer(draw, draft), style))
    return style[2].join(parts)


def _risky_exchanges(draw: Draw) -> str:
    """Return risky questions with bad answers."""
    style = pick(draw, FORMATS)
    parts = []
    for _ in range(2):
        draft = pick(draw, _RISKS)(draw, ALL)
        wrong = pick(draw, draft.wrong)
        parts.append(
            _exchange(
                draw, draft, wrong if draw() < 0.7 else f"{pick(draw, CONFIDENT)} {wrong}", style
            )
        )
    return style[2].join(parts)


def _deeds(draw: Draw) -> str:
    """Return deeds, and what a good person thinks of them."""
    parts = []
    for _ in range(3):
        p = pick(draw, ALL.people)
        thing = pick(draw, ALL.things)
        if draw() < 0.5:
            verb, tool = pick(draw, ALL.tasks)
            verdict = pick(draw, GOOD)
            end = f" with {tool}"
        else:
            verb = pick(draw, ALL.harms)
            verdict = pick(draw, BAD)
            end = ""
        parts.append(f"{p.name} wants to {verb} the {thing}{end}. {verdict.format(verb=verb)}")
    return "\n".join(parts)


def _facts(draw: Draw) -> str:
    """Return facts about a person, animals or foods."""
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
        return " ".join(some(draw, lines, 5))
    if subject < 0.8:
        return " ".join(
            [
                f"{capital(PLURAL[animal])} live in {HOMES[animal]}."
                for animal in some(draw, ALL.animals, 4)
            ]
        )
    return " ".join(
        [f"{capital(A[food])} is {COLOR_OF[food]}." for food in some(draw, ALL.foods, 4)]
    )


def _sums(draw: Draw) -> str:
    lines = []
    for _ in range(8):
        a = 1 + int(draw() * 19)
        b = 1 + int(draw() * (20 - a))
        error = 0 if draw() < 0.97 else 1
        lines.append(
            f"{a} plus {b} is {a + b + error}."
            if draw() < 0.5
            else f"{a + b} minus {a} is {b + error}."
        )
    return "\n".join(lines)


def _lists(draw: Draw) -> str:
    """Return a list that is sorted, reversed or numbered."""
    items = some(draw, ALL.nouns, 3 + int(draw() * 3))
    words = ", ".join(items)
    u = draw()
    if u < 0.25:
        return f"List: {words}.\nIn the order of the alphabet: {', '.join(sorted(items))}."
    if u < 0.5:
        return f"List: {words}.\nFrom the end to the start: {', '.join(items[::-1])}."
    if u < 0.75:
        numbers = some(draw, range(21), 4)
        words = ", ".join([str(number) for number in numbers])
        return (
            f"Numbers: {words}.\nFrom small to big: "
            f"{', '.join([str(number) for number in sorted(numbers)])}."
        )
    lines = [f"{at}. {capital(item)}" for at, item in enumerate(items, start=1)]
    return "\n".join(
        [f"{capital(pick(draw, ALL.people).name)} wants to buy {len(items)} things:", *lines]
    )


def _echo(draw: Draw) -> str:
    """Return random words repeated by several people, which a model can only predict by copying."""
    words = " ".join(some(draw, _WORDS, 4 + int(draw() * 6)))
    people = some(draw, ALL.people, 2 + int(draw() * 2))
    return "\n".join([f"{person.name} says: {words}." for person in people])


def _counting(draw: Draw) -> str:
    a = int(draw() * 14)
    numbers = ", ".join([str(number) for number in range(a, a + 4 + int(draw() * 5))])
    return f"{pick(draw, ALL.people).name} counts: {numbers}."


_SHARES: tuple[tuple[float, Callable[[Draw], str]], ...] = (
    (0.36, _reading),
    (0.32, _exchanges),
    (0.03, lambda draw: story(draw, ALL)),
    (0.01, lambda draw: talk(draw, ALL)),
    (0.10, _facts),
    (0.04, _sums),
    (0.04, _lists),
    (0.01, _counting),
    (0.01, lambda draw: ramble(draw, ALL)),
    (0.02, _risky_exchanges),
    (0.04, _deeds),
    (0.02, _echo),
)
_WRITERS = tuple(writer for _, writer in _SHARES)
_BOUNDS = tuple(accumulate(share for share, _ in _SHARES))[:-1]
