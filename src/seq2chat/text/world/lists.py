"""Families about lists and numbers: copy, reverse, sort, count, pick, count up, add and
subtract."""

from __future__ import annotations

from seq2chat.text.world.lexicon import A, Draw, Pool, other, pick, some
from seq2chat.text.world.question import Draft
from seq2chat.text.world.wordings import N_WAYS, about_lists, commands

COPY = {
    "train": about_lists(
        "say LIST once more",
        "give LIST back with no change",
        "say LIST again, with no change",
        "write LIST again",
        "repeat LIST",
        "copy LIST",
        "write a copy of LIST",
        "read LIST to me in the same order",
    ),
    "dev": (
        "Give me the same words: {items}.",
        "Say after me: {items}.",
    ),
    "test": ("Please say these words again: {items}.", "Write down the same list: {items}."),
}
REVERSE = {
    "train": about_lists(
        "turn LIST around",
        "read LIST from right to left",
        "write LIST the other way around",
        "begin at the end of LIST",
        "reverse LIST",
        "say LIST from the end to the start",
        "go back through LIST",
        "put the last of LIST first and the first last",
    ),
    "dev": (
        "Give me these words from last to first: {items}.",
        "Read this list from the right: {items}.",
    ),
    "test": (
        "Please turn this list around: {items}.",
        "Start with the last word and end with the first: {items}.",
    ),
}
SORT_WORDS = {
    "train": about_lists(
        "put LIST from a to z",
        "write LIST in the order of the alphabet",
        "order LIST by the alphabet",
        "sort LIST",
        "sort LIST from a to z",
        "give LIST an alphabetical order",
        "say LIST with the letter a first and z last",
        "put LIST in the order of the letters",
    ),
    "dev": (
        "Give me these words in alphabetical order: {items}.",
        "Make an alphabetical list: {items}.",
    ),
    "test": (
        "Please put this list in order from a to z: {items}.",
        "What is the alphabetical order of: {items}?",
    ),
}
SORT_NUMBERS = {
    "train": commands(
        "begin with the smallest number: {items}",
        "order these numbers: {items}",
        "write the numbers so that they grow: {items}",
        "sort these numbers: {items}",
        "sort this list: {items}",
        "put these numbers in order from small to big: {items}",
        "say these numbers from the smallest to the largest: {items}",
        "order this list so that the numbers grow: {items}",
        "give an order to this list: {items}",
    ),
    "dev": (
        "Give me these numbers in order: {items}.",
        "Make an ordered list: {items}.",
    ),
    "test": (
        "Please start with the small number: {items}.",
        "Write these numbers from small to large: {items}.",
    ),
}
COUNT = {
    "train": (
        *commands(
            "say how many words there are: {items}",
            "write the number of these words: {items}",
            "look and count the words: {items}",
            "count these words: {items}",
        ),
        *("What number of words is this: {items}?", "How many words are in this list: {items}?")
        * N_WAYS,
    ),
    "dev": (
        "Do you know how many words these are: {items}?",
        "Give me the number of words: {items}.",
    ),
    "test": (
        "Please say how many words you see: {items}.",
        "What is the number of words in: {items}?",
    ),
}
PICK = {
    "train": (
        *commands(
            "say the {k} word: {items}",
            "find the {k} of these words: {items}",
            "write the {k} word: {items}",
            "tell me the {k} word of this list: {items}",
        ),
        *("Which is the {k} word here: {items}?", "What is the {k} word: {items}?") * N_WAYS,
    ),
    "dev": (
        "Do you know the {k} word: {items}?",
        "Take the {k} word: {items}.",
    ),
    "test": ("Please find the {k} word: {items}.", "Which word is the {k} of these: {items}?"),
}
COUNT_UP = {
    "train": commands(
        "begin at {a} and end at {b}",
        "write all numbers between {a} and {b}, with both",
        "count for me, {a} to {b}",
        "count from {a} to {b}",
        "say the numbers from {a} to {b}",
        "begin with {a} and count until {b}",
        "list the numbers from {a} up to {b}",
        "say which numbers are from {a} to {b}",
        "start with {a}, and stop with {b}",
    ),
    "dev": (
        "Give me the numbers {a} to {b}.",
        "Go up from {a} to {b}.",
    ),
    "test": ("Please start at {a} and count to {b}.", "Which numbers go from {a} to {b}?"),
}
SUM = {
    "train": (
        *commands(
            "say what {a} {sign} {b} is",
            "tell me what {a} {sign} {b} is",
            "write the number for {a} {sign} {b}",
            "work out what {a} {sign} {b} is",
            "find {a} {sign} {b}",
        ),
        *("What is {a} {sign} {b}?", "How many are {a} {sign} {b}?", "{a} {sign} {b} is what?")
        * N_WAYS,
    ),
    "dev": (
        "Do you know what {a} {sign} {b} is?",
        "Work with me: {a} {sign} {b}.",
    ),
    "test": ("Please work out {a} {sign} {b}.", "How much is {a} {sign} {b}?"),
}
ORDINALS = ("first", "second", "third", "last")


def _sentence(items: list[str]) -> str:
    """Return a list as a sentence. Words keep their lower case, so that copying them is easy."""
    listed = ", ".join(items)
    return f"{listed}." if items[0].isdigit() else f"The words are {listed}."


def _listing(draw: Draw, items: list[str], right: list[str], wordings: tuple[str, ...]) -> Draft:
    """Return a question whose answer is the list in some order.

    Wrong answers have another order, and the loose one lacks an item.
    """
    wording = pick(draw, wordings)
    swapped = right[:]
    i = int(draw() * (len(right) - 1))
    swapped[i] = right[i + 1]
    swapped[i + 1] = right[i]
    same = items if items != right else right[::-1]
    text = wording.format(items=", ".join(items))
    return Draft(
        text=text,
        answer=_sentence(right),
        check="list",
        key=tuple(right),
        wrong=(_sentence(swapped), _sentence(same)),
        template=wording,
        loose=_sentence(right[:-1]),
    )


def _nouns(draw: Draw, pool: Pool) -> list[str]:
    return some(draw, pool.nouns, 3 + int(draw() * 2))


def copy(draw: Draw, pool: Pool) -> Draft:
    items = some(draw, pool.nouns, 3 + int(draw() * 3))
    return _listing(draw, items, items, COPY[pool.wording])


def reverse(draw: Draw, pool: Pool) -> Draft:
    items = _nouns(draw, pool)
    return _listing(draw, items, items[::-1], REVERSE[pool.wording])


def sort_words(draw: Draw, pool: Pool) -> Draft:
    items = _nouns(draw, pool)
    return _listing(draw, items, sorted(items), SORT_WORDS[pool.wording])


def sort_numbers(draw: Draw, pool: Pool) -> Draft:
    n = 3 + int(draw() * 2)
    numbers = some(draw, range(21), n)
    while sum(numbers) % 4 not in pool.remainders:
        numbers = some(draw, range(21), n)
    items = [str(number) for number in numbers]
    right = [str(number) for number in sorted(numbers)]
    return _listing(draw, items, right, SORT_NUMBERS[pool.wording])


def count_up(draw: Draw, pool: Pool) -> Draft:
    a = int(draw() * 16)
    n = 3 + int(draw() * 3)
    while (a + n) % 4 not in pool.remainders:
        a = int(draw() * 16)
        n = 3 + int(draw() * 3)
    wording = pick(draw, COUNT_UP[pool.wording])
    right = [str(number) for number in range(a, a + n)]
    late = [*right, str(a + n)]
    early = right[1:]
    text = wording.format(a=a, b=a + n - 1)
    return Draft(
        text=text,
        answer=_sentence(right),
        check="list",
        key=tuple(right),
        wrong=(_sentence(late), _sentence(right[::-1])),
        template=wording,
        loose=_sentence(early),
    )


def count(draw: Draw, pool: Pool) -> Draft:
    n = 2 + int(draw() * 4)
    items = some(draw, pool.nouns, n)
    wording = pick(draw, COUNT[pool.wording])
    lies = some(draw, tuple(m for m in range(2, 7) if m != n), 2)
    wrong = tuple(f"There are {lie} words." for lie in lies)
    text = wording.format(items=", ".join(items))
    return Draft(
        text=text,
        answer=f"There are {n} words.",
        check="value",
        key=(str(n),),
        wrong=wrong,
        template=wording,
        loose=_sentence(items),
    )


def pick_word(draw: Draw, pool: Pool) -> Draft:
    items = _nouns(draw, pool)
    ordinal = int(draw() * len(ORDINALS))
    key = items[-1] if ordinal == 3 else items[ordinal]
    k = ORDINALS[ordinal]
    wording = pick(draw, PICK[pool.wording])
    lie = other(draw, items, key)
    stray = other(draw, pool.nouns, *items)
    wrong = (f"The {k} word is {lie}.", f"The {k} word is {stray}.")
    text = wording.format(k=k, items=", ".join(items))
    return Draft(
        text=text,
        answer=f"The {k} word is {key}.",
        check="value",
        key=(key,),
        wrong=wrong,
        template=wording,
        loose=f"I see {A[lie]}.",
    )


def arithmetic(draw: Draw, pool: Pool) -> Draft:
    """Return a sum or difference of numbers up to 20.

    The result is never one of the terms, so that repeating a term is always wrong.
    """
    while True:
        c = 2 + int(draw() * 19)
        a = 1 + int(draw() * 19)
        b = c - a
        if b > 0 and (3 * a + b) % 4 in pool.remainders and a != b:
            break
    sign = "plus"
    if draw() < 0.5:
        # a + b = c becomes c - a = b.
        sign = "minus"
        a, b, c = c, a, b
    near = (c - 3, c - 2, c - 1, c + 1, c + 2, c + 3)
    lies = some(draw, tuple(lie for lie in near if 0 <= lie <= 20 and lie not in (a, b)), 2)
    wrong = tuple(f"{a} {sign} {b} is {lie}." for lie in lies)
    wording = pick(draw, SUM[pool.wording])
    text = wording.format(a=a, sign=sign, b=b)
    return Draft(
        text=text,
        answer=f"{a} {sign} {b} is {c}.",
        check="value",
        key=(str(c),),
        wrong=wrong,
        template=wording,
    )
