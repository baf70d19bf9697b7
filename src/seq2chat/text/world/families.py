"""The families of questions, and the questions of a split made from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from seq2chat.config import UserError, check
from seq2chat.text.chat import Message
from seq2chat.text.world import lists, manners, passages, risks, smalltalk
from seq2chat.text.world.lexicon import POOLS, SPLITS, Draw, Pool, pick, shuffle
from seq2chat.text.world.question import Draft, Question

Family = Callable[[Draw, Pool], Draft]

MAKERS: dict[str, Family] = {
    "passage": passages.passage,
    "who": passages.who,
    "where": passages.where,
    "how_many": passages.how_many,
    "two_steps": passages.two_steps,
    "pronoun": passages.pronoun,
    "exact_words": passages.exact_words,
    "dialogue": passages.dialogue,
    "copy": lists.copy,
    "reverse": lists.reverse,
    "sort_words": lists.sort_words,
    "sort_numbers": lists.sort_numbers,
    "count": lists.count,
    "count_up": lists.count_up,
    "pick": lists.pick_word,
    "arithmetic": lists.arithmetic,
    "fact": manners.fact,
    "polite": manners.polite,
    "how_to": manners.how_to,
    "greeting": smalltalk.greeting,
    "identity": smalltalk.identity,
    "unanswerable": risks.unanswerable,
    "outside": smalltalk.outside,
    "false_premise": risks.false_premise,
    "harmful": manners.harmful,
}
FAMILIES: tuple[str, ...] = tuple(MAKERS)
RISKS = ("unanswerable", "outside", "false_premise", "harmful")
READING = ("passage", "who", "where", "how_many")

SYSTEM = {
    "train": ("You are a kind helper.", "Be brief and true.", "You help people."),
    "dev": ("Please help people.", "Give true answers."),
    "test": ("You give short and good answers.", "Help all people who ask you."),
}
SYSTEM_SHARE = 0.15


def questions(
    split: str, n: int, seed: int = 0, families: Sequence[str] = FAMILIES
) -> list[Question]:
    """Return `n` questions of a split ("train", "dev" or "test"), evenly distributed over
    `families` and shuffled.

    They are a function of the arguments. The splits share no template, person, place, animal, thing
    or food. Raises UserError for an unknown split or family.
    """
    check(split in SPLITS, f"There is no split {split!r} of the world; write train, dev or test.")
    check(
        len(families) > 0 and n >= 0,
        "There are no questions to make; give at least one family, and a number of 0 or more.",
    )
    for family in families:
        if family not in MAKERS:
            raise UserError(f"There is no family {family!r}; write some of {', '.join(FAMILIES)}.")
    rng = random.Random((SPLITS.index(split) << 64) + (seed & (1 << 64) - 1))
    made = [_question(rng.random, families[i % len(families)], split) for i in range(n)]
    shuffle(rng, made)
    return made


def _question(draw: Draw, family: str, split: str) -> Question:
    draft = MAKERS[family](draw, POOLS[split])
    messages = [Message("system", pick(draw, SYSTEM[split]))] if draw() < SYSTEM_SHARE else []
    for i, content in enumerate((*draft.earlier, draft.text)):
        messages.append(Message("assistant" if i % 2 else "user", content))
    return Question(family, split, tuple(messages), *draft[1:-1])
