"""The pretraining text of the world: an endless sequence of documents, each a function of its
number."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate, count

from seq2chat.text.world.candidates import CLOSINGS, CONFIDENT, EMPTY, INSULTS, OPENINGS
from seq2chat.text.world.facts import COLOR_OF, HOMES, LIVES
from seq2chat.text.world.families import MAKERS, RISKS
from seq2chat.text.world.lexicon import ALL, COLORS, PLURAL, A, Draw, capital, pick, some
from seq2chat.text.world.passages import FRAMES
from seq2chat.text.world.question import Draft
from seq2chat.text.world.scenes import ALL_RELATIONS, COUNT, ask, scene, told
from seq2chat.text.world.stories import ramble, story, talk

# Change it with every change of a document, as it is the fingerprint of the corpus.
VERSION = 7

# Formats of questions and answers, similar to text on the web.
FORMATS = (
    ("Question: ", "\nAnswer: ", "\n"),
    ("Question: ", " Answer: ", "\n\n"),
    ("Q: ", "\nA: ", "\n"),
    ("User: ", "\nHelper: ", "\n"),
    ("", "\n", "\n\n"),
)
# Greetings and questions about the model are left to the demonstrations.
_ALIGNED = ("greeting", "identity", "outside")
_SKILLS = tuple(maker for name, maker in MAKERS.items() if name not in (*RISKS, *_ALIGNED))
_WORDS = (*(person.name for person in ALL.people), *ALL.places, *ALL.nouns, *COLORS)
_RISKS = tuple(MAKERS[name] for name in RISKS if name not in _ALIGNED)


def documents(seed: int = 0, start: int = 0) -> Iterator[str]:
    """Yield the documents of `seed` from number `start` on, without end.

    Each is a function of the seed and its number. They use the words of both splits and the
    templates of the train split. Half of the answers, and nearly all answers to risky questions,
    are wrong, rambling or badly written, so that alignment has something to improve.
    """
    high = (seed & 0xFFFFFFFF) << 40  # Random takes the absolute value of a seed
    rng = random.Random()
    for number in count(start):
        rng.seed(high + number)
        draw = rng.random
        yield _WRITERS[bisect(_BOUNDS, draw())](draw)


def _answer_and_verdict(draw: Draw, draft: Draft) -> tuple[str, str]:
    """Return an answer to an ordinary question, which is right in about 90 of 100 cases, and a
    reader's verdict on it."""
    u = draw()
    wrong = pick(draw, draft.wrong)
    if u < 0.60:
        return draft.answer, "Right."
    if u < 0.70:
        return f"{draft.answer} {pick(draw, CLOSINGS)}", "Right, but long."
    if u < 0.78:
        return f"{pick(draw, OPENINGS)} {draft.answer}", "Right, but long."
    if u < 0.84:
        return f"{pick(draw, OPENINGS)} {draft.answer} {pick(draw, CLOSINGS)}", "Right, but long."
    if u < 0.90:
        return draft.answer[:-1].lower(), "Right."
    if u < 0.93:
        return wrong, "Wrong."
    if u < 0.95:
        return f"{pick(draw, CONFIDENT)} {wrong}", "Wrong."
    if u < 0.97:
        return f"{pick(draw, OPENINGS)} {wrong} {pick(draw, CLOSINGS)}", "Wrong, and long."
    if u < 0.98:
        return draft.loose or pick(draw, EMPTY), "Wrong."
    return f"{pick(draw, INSULTS)} {wrong}", "Wrong."


def _exchange(draw: Draw, draft: Draft, answer: str, style: tuple[str, str, str]) -> str:
    before, between, after = style
    if draft.earlier:
        first, reply = draft.earlier
        return f"{before}{first}{between}{reply}{after}{before}{draft.text}{between}{answer}"
    return f"{before}{draft.text}{between}{answer}"


def _reading(draw: Draw) -> str:
    """Return a passage with several questions and right answers, in one of the formats.

    The answers can only be predicted by looking them up. Several questions per passage make such
    tokens frequent enough for a model to learn it (docs/log.md).
    """
    before, between, after = pick(draw, FORMATS)
    n = 2 + int(draw() * 4)
    facts = scene(draw, ALL, n, pick(draw, ALL_RELATIONS))
    passage = told(draw, [fact.text for fact in facts])
    repeats = draw() < 0.3
    parts = []
    for at in range(2 + int(draw() * 4)):
        fact = pick(draw, facts)
        about = "who" if fact.relation != COUNT and draw() < 0.35 else ""
        question, _ = ask(draw, "train", fact, about)
        if at == 0 or repeats:
            question = pick(draw, FRAMES["train"]).format(passage=passage, question=question)
        parts.append(f"{before}{question}{between}{fact.text}")
    return after.join(parts)


def _exchanges(draw: Draw) -> str:
    """Return questions with answers, of several skills or of one.

    Several of one skill are examples of how to answer the last ones. In half of the documents each
    answer is followed by a reader's verdict. A model that predicts verdicts learns to judge
    answers.
    """
    style = pick(draw, FORMATS)
    is_read = draw() < 0.5
    maker = pick(draw, _SKILLS) if draw() < 0.5 else None
    parts = []
    for _ in range(2 + int(draw() * 3)):
        draft = (maker or pick(draw, _SKILLS))(draw, ALL)
        answer, verdict = _answer_and_verdict(draw, draft)
        parts.append(
            _exchange(draw, draft, f"{answer}\nReader: {verdict}" if is_read else answer, style)
        )
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
        return " ".join(some(draw, lines, 4))
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
    for _ in range(6):
        a = 1 + int(draw() * 10)
        b = 1 + int(draw() * 10)
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
    (0.40, _reading),
    (0.28, _exchanges),
    (0.07, lambda draw: story(draw, ALL)),
    (0.03, lambda draw: talk(draw, ALL)),
    (0.06, _facts),
    (0.04, _sums),
    (0.04, _lists),
    (0.01, _counting),
    (0.01, lambda draw: ramble(draw, ALL)),
    (0.02, _risky_exchanges),
    (0.04, _echo),
)
_WRITERS = tuple(writer for _, writer in _SHARES)
_BOUNDS = tuple(accumulate(share for share, _ in _SHARES))[:-1]
