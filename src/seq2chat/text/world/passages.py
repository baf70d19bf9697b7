"""Families about a passage: facts, counts, pronouns, exact numbers of words, and dialogues."""

from __future__ import annotations

from seq2chat.text.world.lexicon import (
    COLORS,
    PLURAL,
    A,
    Draw,
    Person,
    Pool,
    capital,
    other,
    pick,
    some,
)
from seq2chat.text.world.question import Draft

FRAMES = {
    "train": ("{passage} {question}", "{passage} {question}", "Read this. {passage} {question}"),
    "test": (
        "Please read this text. {passage} {question}",
        "This is my text. {passage} {question}",
    ),
}
# A verb, its base form, and the kind of its object.
RELATIONS = (
    ("has", "have", "thing"),
    ("holds", "hold", "thing"),
    ("sees", "see", "animal"),
    ("buys", "buy", "food"),
)
WHAT = {
    "train": ("What does {p} {base}?", "What does {p} {base}?", "Tell me what {p} {verb}."),
    "test": ("What is it that {p} {verb}?", "Please say what {p} {verb}."),
}
WHO = {
    "train": ("Who {verb} {what}?", "Who {verb} {what}?", "Tell me who {verb} {what}."),
    "test": ("Who is it that {verb} {what}?", "Please say who {verb} {what}."),
}
WHERE = {
    "train": ("Where is {p}?", "Where is {p}?", "Tell me where {p} is."),
    "test": ("Where can I find {p}?", "Please say where {p} is."),
}
HOW_MANY = {
    "train": ("How many {what} does {p} have?", "Tell me how many {what} {p} has."),
    "test": ("Please say how many {what} {p} has.", "What number of {what} does {p} have?"),
}
EXACTLY = {
    "train": ("{question} Answer in exactly {n}.", "{question} Use exactly {n}."),
    "test": (
        "{question} Your answer must have exactly {n}.",
        "{question} Say it in {n}, no more and no less.",
    ),
}


def thing(draw: Draw, pool: Pool, of: str = "thing") -> tuple[str, str]:
    """Return a random object of the kind `of` with its article, and without it."""
    if of == "thing":
        name = f"{pick(draw, COLORS)} {pick(draw, pool.things)}"
        return f"a {name}", name
    name = pick(draw, pool.animals if of == "animal" else pool.foods)
    return A[name], name


def two_things(draw: Draw, pool: Pool, of: str) -> list[tuple[str, str]]:
    """Return two different objects as in `thing`."""
    one = thing(draw, pool, of)
    while (two := thing(draw, pool, of))[1] == one[1]:
        pass
    return [one, two]


def framed(draw: Draw, pool: Pool, passage: str, wording: str, **slots: str) -> tuple[str, str]:
    """Return the user's words for a passage and a question, and the name of the template."""
    frame = pick(draw, FRAMES[pool.wording])
    return frame.format(passage=passage, question=wording.format(**slots)), f"{frame}|{wording}"


def passage(draw: Draw, pool: Pool) -> Draft:
    verb, base, of = pick(draw, RELATIONS)
    (one, key), (two, _) = two_things(draw, pool, of)
    p, q, third = some(draw, pool.people, 3)
    lines = [f"{p.name} {verb} {one}.", f"{q.name} {verb} {two}."]
    if draw() < 0.5:
        lines.reverse()
    if draw() < 0.3:
        lines.append(f"{third.name} is in {pick(draw, pool.spots)}.")
    wording = pick(draw, WHAT[pool.wording])
    text, template = framed(draw, pool, " ".join(lines), wording, p=p.name, verb=verb, base=base)
    wrong = (f"{p.name} {verb} {two}.", f"{q.name} {verb} {two}.")
    return Draft(
        text=text,
        answer=f"{p.name} {verb} {one}.",
        check="value",
        key=(key,),
        wrong=wrong,
        template=template,
    )


def who(draw: Draw, pool: Pool) -> Draft:
    p, q, third = some(draw, pool.people, 3)
    if draw() < 0.4:
        verb = "is in"
        one, two = some(draw, pool.spots, 2)
    else:
        verb, _, of = pick(draw, RELATIONS)
        (one, _), (two, _) = two_things(draw, pool, of)
    lines = [f"{p.name} {verb} {one}.", f"{q.name} {verb} {two}."]
    if draw() < 0.5:
        lines.reverse()
    wording = pick(draw, WHO[pool.wording])
    text, template = framed(draw, pool, " ".join(lines), wording, verb=verb, what=one)
    wrong = (f"{q.name} {verb} {one}.", f"{third.name} {verb} {one}.")
    return Draft(
        text=text,
        answer=f"{p.name} {verb} {one}.",
        check="value",
        key=(p.name,),
        wrong=wrong,
        template=template,
    )


def where(draw: Draw, pool: Pool) -> Draft:
    p, q, third = some(draw, pool.people, 3)
    one, two, three = some(draw, pool.spots, 3)
    lines = [f"{p.name} is in {one}.", f"{q.name} is in {two}."]
    if draw() < 0.5:
        lines.reverse()
    if draw() < 0.3:
        lines.append(f"{third.name} has {thing(draw, pool)[0]}.")
    text, template = framed(draw, pool, " ".join(lines), pick(draw, WHERE[pool.wording]), p=p.name)
    wrong = (f"{p.name} is in {two}.", f"{p.name} is in {three}.")
    return Draft(
        text=text,
        answer=f"{p.name} is in {one}.",
        check="value",
        key=(one,),
        wrong=wrong,
        template=template,
    )


def how_many(draw: Draw, pool: Pool) -> Draft:
    p, q = some(draw, pool.people, 2)
    one, two = some(draw, pool.nouns, 2)
    n, m, k = some(draw, range(2, 13), 3)
    lines = [f"{p.name} has {n} {PLURAL[one]}.", f"{q.name} has {m} {PLURAL[two]}."]
    if draw() < 0.5:
        lines.reverse()
    wording = pick(draw, HOW_MANY[pool.wording])
    text, template = framed(draw, pool, " ".join(lines), wording, p=p.name, what=PLURAL[one])
    wrong = (f"{p.name} has {m} {PLURAL[one]}.", f"{p.name} has {k} {PLURAL[one]}.")
    return Draft(
        text=text,
        answer=f"{p.name} has {n} {PLURAL[one]}.",
        check="value",
        key=(str(n),),
        wrong=wrong,
        template=template,
    )


def pronoun(draw: Draw, pool: Pool) -> Draft:
    """Return a question about a pronoun: "She has ..." after a woman met a man, or "It is ..."
    after a traveler saw an animal."""
    spot = pick(draw, pool.spots)
    if draw() < 0.35:
        p = pick(draw, pool.people)
        animal = pick(draw, pool.animals)
        state = pick(draw, ("big", "small", "old", "hungry", "tired"))
        text, template = framed(
            draw,
            pool,
            f"{p.name} visits {spot}. {p.He} sees {A[animal]}. It is {state}.",
            pick(draw, WHO_IS[pool.wording]),
            state=state,
        )
        wrong = (f"The {other(draw, pool.animals, animal)} is {state}.", f"{p.name} is {state}.")
        return Draft(
            text=text,
            answer=f"The {animal} is {state}.",
            check="value",
            key=(animal,),
            wrong=wrong,
            template=template,
        )
    p = pick(draw, pool.women)
    q = pick(draw, pool.men)
    if draw() < 0.5:
        p, q = q, p
    first, second = (p, q) if draw() < 0.5 else (q, p)
    verb, _, of = pick(draw, RELATIONS)
    what, _ = thing(draw, pool, of)
    text, template = framed(
        draw,
        pool,
        f"{first.name} meets {second.name} in {spot}. {p.He} {verb} {what}.",
        pick(draw, WHO[pool.wording]),
        verb=verb,
        what=what,
    )
    third = other(draw, pool.people, p, q)
    wrong = (f"{q.name} {verb} {what}.", f"{third.name} {verb} {what}.")
    return Draft(
        text=text,
        answer=f"{p.name} {verb} {what}.",
        check="value",
        key=(p.name,),
        wrong=wrong,
        template=template,
    )


WHO_IS = {
    "train": ("What is {state}?", "Tell me what is {state}."),
    "test": ("What is it that is {state}?", "Please say what is {state}."),
}


def exact_words(draw: Draw, pool: Pool) -> Draft:
    p = pick(draw, pool.people)
    verb, base, _ = pick(draw, RELATIONS[:2])
    color = pick(draw, COLORS)
    noun = pick(draw, pool.things)
    answers = {
        1: f"{capital(noun)}.",
        2: f"{capital(color)} {noun}.",
        3: f"A {color} {noun}.",
        5: f"{p.name} {verb} a {color} {noun}.",
    }
    n, other_n = some(draw, (1, 2, 3, 5), 2)
    question = pick(draw, WHAT[pool.wording])
    wording = pick(draw, EXACTLY[pool.wording]).replace("{question}", question)
    slots = {"p": p.name, "verb": verb, "base": base, "n": "1 word" if n == 1 else f"{n} words"}
    text, template = framed(draw, pool, f"{p.name} {verb} a {color} {noun}.", wording, **slots)
    lie = other(draw, pool.things, noun)
    wrong = (
        capital(answers[n].replace(noun, lie).replace(capital(noun), capital(lie))),
        f"{p.name} {verb} a {lie}.",
    )
    names = (p.name, color, noun)
    return Draft(
        text=text,
        answer=answers[n],
        check="words",
        key=(noun,),
        wrong=wrong,
        template=template,
        loose=answers[other_n],
        names=names,
        n_words=n,
    )


AGAIN = {
    "train": ("And {question}", "Now tell me: {question}"),
    "test": ("One more thing: {question}", "Thank you. Then {question}"),
}
NAME = {
    "train": ("Hello. I am {p} and I have {what}.", "My name is {p}. I have {what}."),
    "test": (
        "Good day. People call me {p}. I have {what}.",
        "I am here. I have {what} and my name is {p}.",
    ),
}
MINE = {
    "train": ("What do I have?", "What is my name?"),
    "test": ("Please say what I have.", "Please say my name."),
}


def dialogue(draw: Draw, pool: Pool) -> Draft:
    """Return a second question about the first passage, or one about the user."""
    p, q = some(draw, pool.people, 2)
    what, key = thing(draw, pool)
    if draw() < 0.5:
        return _about_the_user(draw, pool, p, q, what, key)
    spot = pick(draw, pool.spots)
    first, template = framed(
        draw,
        pool,
        f"{p.name} is in {spot}. {q.name} has {what}.",
        pick(draw, WHERE[pool.wording]),
        p=p.name,
    )
    if draw() < 0.5:
        question = "what does {q} have?"
        answer = f"{q.name} has {what}."
        lie = thing(draw, pool)[0]
        wrong = (f"{q.name} is in {spot}.", f"{p.name} is in {spot}.")
        if lie != what:
            wrong = (f"{q.name} has {lie}.", *wrong)
    else:
        question = "who has {what}?"
        answer = f"{q.name} has {what}."
        key = q.name
        wrong = (f"{p.name} has {what}.", f"{p.name} is in {spot}.")
    wording = pick(draw, AGAIN[pool.wording])
    text = wording.format(question=question.format(q=q.name, what=what))
    earlier = (first, f"{p.name} is in {spot}.")
    return Draft(
        text=text,
        answer=answer,
        check="value",
        key=(key,),
        wrong=wrong,
        template=f"{template}|{wording}",
        earlier=earlier,
    )


def _about_the_user(draw: Draw, pool: Pool, p: Person, q: Person, what: str, key: str) -> Draft:
    opening = pick(draw, NAME[pool.wording])
    at = int(draw() * 2)
    wording = MINE[pool.wording][at]
    earlier = (opening.format(p=p.name, what=what), f"Hello, {p.name}. It is nice to meet you.")
    if at == 0:
        lie = thing(draw, pool)
        while lie[1] == key:
            lie = thing(draw, pool)
        answer = f"You have {what}."
        wrong = (f"You have {lie[0]}.", f"{q.name} has {lie[0]}.")
    else:
        answer = f"Your name is {p.name}."
        key = p.name
        wrong = (f"Your name is {q.name}.", f"My name is {q.name}.")
    return Draft(
        text=wording,
        answer=answer,
        check="value",
        key=(key,),
        wrong=wrong,
        template=f"{opening}|{wording}",
        earlier=earlier,
    )
