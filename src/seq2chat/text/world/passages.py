"""Families about a passage: facts, counts, two steps, pronouns, exact numbers of words, and
dialogues."""

from __future__ import annotations

from seq2chat.text.world.lexicon import (
    COLORS,
    A,
    Draw,
    Person,
    Pool,
    Split,
    capital,
    other,
    pick,
    some,
)
from seq2chat.text.world.question import Draft
from seq2chat.text.world.scenes import (
    COUNT,
    IN,
    RELATIONS,
    WHAT,
    WHERE,
    WHO,
    Fact,
    Relation,
    an_object,
    another,
    ask,
    scene,
    stranger,
    told,
)
from seq2chat.text.world.wordings import Wordings, questions

FRAMES: Wordings = {
    "train": (
        *("{passage} {question}",) * 4,
        "Read this. {passage} {question}",
        "Look at this: {passage} {question}",
        "Listen. {passage} {question}",
        "I have a text for you. {passage} {question}",
        "{passage} So, {question}",
        "{passage} And this is what I ask: {question}",
    ),
    "dev": ("Here is a text. {passage} {question}", "{passage} Now my question. {question}"),
    "test": (
        "Please read this text. {passage} {question}",
        "This is my text. {passage} {question}",
    ),
}
EXACTLY: Wordings = {
    "train": (
        "{question} Answer in exactly {n}.",
        "{question} Use exactly {n}.",
        "{question} Use {n} for it.",
        "{question} Answer with {n}.",
        "{question} Keep it to {n}.",
        "{question} The answer has {n}.",
        "{question} I need {n}, not more.",
        "{question} Write {n}.",
        "{question} That takes {n}.",
        "{question} Reply in {n}, please.",
        "Answer this in {n}. {question}",
        "Use {n} to answer. {question}",
    ),
    "dev": ("{question} Give me {n} only.", "{question} I want {n} as the answer."),
    "test": (
        "{question} Your answer must have exactly {n}.",
        "{question} Say it in {n}, no more and no less.",
    ),
}
MOST_FACTS = 4


def framed(draw: Draw, pool: Pool, passage: str, question: str) -> tuple[str, str]:
    """Return the user's words for a passage and a question, and the name of the frame."""
    frame = pick(draw, FRAMES[pool.wording])
    return frame.format(passage=passage, question=question), frame


def _n_facts(draw: Draw) -> int:
    return 2 + int(draw() * (MOST_FACTS - 1))


def _about(draw: Draw, pool: Pool, relation: Relation, about: str = "") -> Draft:
    """Return a question about one fact of a scene. The first wrong answer swaps two facts."""
    facts = scene(draw, pool, _n_facts(draw), relation)
    fact, rival = facts[:2]
    question, wording = ask(draw, pool.wording, fact, about)
    text, frame = framed(draw, pool, told(draw, [f.text for f in facts]), question)
    if about == "who":
        key = fact.person.name
        wrong = (
            rival.with_object(fact),
            f"{stranger(draw, pool, facts).name} {relation.verb} {fact.what}.",
        )
    else:
        key = fact.key
        wrong = (fact.with_object(rival), another(draw, pool, fact, facts))
    if relation == COUNT:
        # The same noun, so that only the number is wrong.
        noun = fact.what.split()[1]
        n = other(draw, range(2, 13), int(fact.key), int(rival.key))
        name = fact.person.name
        wrong = (f"{name} has {rival.key} {noun}.", f"{name} has {n} {noun}.")
    return Draft(
        text=text,
        answer=fact.text,
        check="value",
        key=(key,),
        wrong=wrong,
        template=f"{frame}|{wording}",
    )


def passage(draw: Draw, pool: Pool) -> Draft:
    return _about(draw, pool, pick(draw, RELATIONS))


def who(draw: Draw, pool: Pool) -> Draft:
    return _about(draw, pool, pick(draw, (IN, *RELATIONS)), about="who")


def where(draw: Draw, pool: Pool) -> Draft:
    return _about(draw, pool, IN)


def how_many(draw: Draw, pool: Pool) -> Draft:
    return _about(draw, pool, COUNT)


def two_steps(draw: Draw, pool: Pool) -> Draft:
    """Return a question whose answer needs two statements: a person is with another one, whose
    place is known."""
    facts = scene(draw, pool, 2 + int(draw() * 2), IN, same=1.0)
    fact, rival = facts[:2]
    friend = stranger(draw, pool, facts)
    lines = [*(f.text for f in facts), f"{friend.name} is with {fact.person.name}."]
    passage_text = told(draw, lines)
    wording = pick(draw, WHERE[pool.wording])
    text, frame = framed(draw, pool, passage_text, wording.format(p=friend.name))
    return Draft(
        text=text,
        answer=f"{friend.name} is in {fact.what}.",
        check="value",
        key=(fact.key,),
        wrong=(
            f"{friend.name} is in {rival.what}.",
            another(draw, pool, Fact(friend, IN, fact.what, fact.key), facts),
        ),
        template=f"{frame}|{wording}",
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
            pick(draw, WHO_IS[pool.wording]).format(state=state),
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
    what, _ = an_object(draw, pool, of)
    text, template = framed(
        draw,
        pool,
        f"{first.name} meets {second.name} in {spot}. {p.He} {verb} {what}.",
        pick(draw, WHO[pool.wording]).format(verb=verb, what=what),
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


WHO_IS: Wordings = {
    "train": questions(("What is {state}?", "And what is {state}?"), "what is {state}"),
    "dev": ("Do you know what is {state}?", "I want to know what is {state}."),
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
    wording = pick(draw, EXACTLY[pool.wording])
    full = wording.format(
        question=question.format(p=p.name, verb=verb, base=base),
        n="1 word" if n == 1 else f"{n} words",
    )
    text, frame = framed(draw, pool, f"{p.name} {verb} a {color} {noun}.", full)
    template = f"{frame}|{wording}"
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


AGAIN: Wordings = {
    "train": (
        "And {question}",
        "Now tell me: {question}",
        "That is good. And {question}",
        "Yes. And {question}",
        "Tell me this too: {question}",
        "My next question is: {question}",
    ),
    "dev": ("Next: {question}", "I ask you again: {question}"),
    "test": ("One more thing: {question}", "Thank you. Then {question}"),
}
NAME: Wordings = {
    "train": (
        "Hello. I am {p} and I have {what}.",
        "My name is {p}. I have {what}.",
        "I am {p}. Look, I have {what}.",
        "I have {what}. I am {p}.",
        "They call me {p}, and I have {what}.",
        "Look at me: I have {what}. My name is {p}.",
    ),
    "dev": ("My friends call me {p}. I own {what}.", "Here I am with {what}. My name is {p}."),
    "test": (
        "Good day. People call me {p}. I have {what}.",
        "I am here. I have {what} and my name is {p}.",
    ),
}
# What the user has, and the user's name.
MINE: dict[Split, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (
        questions(("What do I have?", "And what do I have?"), "what I have"),
        questions(("What is my name?", "Who am I?", "What am I called?"), "what my name is"),
    ),
    "dev": (("Do you know what I have?",), ("Do you know my name?",)),
    "test": (("Please say what I have.",), ("Please say my name.",)),
}


def dialogue(draw: Draw, pool: Pool) -> Draft:
    """Return a second question about the first passage, or one about the user."""
    p, q = some(draw, pool.people, 2)
    what, key = an_object(draw, pool, "thing")
    if draw() < 0.5:
        return _about_the_user(draw, pool, p, q, what, key)
    spot = pick(draw, pool.spots)
    first, template = framed(
        draw,
        pool,
        f"{p.name} is in {spot}. {q.name} has {what}.",
        pick(draw, WHERE[pool.wording]).format(p=p.name),
    )
    if draw() < 0.5:
        question = "what does {q} have?"
        answer = f"{q.name} has {what}."
        lie = an_object(draw, pool, "thing")[0]
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
    wording = pick(draw, MINE[pool.wording][at])
    earlier = (opening.format(p=p.name, what=what), f"Hello, {p.name}. It is nice to meet you.")
    if at == 0:
        lie = an_object(draw, pool, "thing")
        while lie[1] == key:
            lie = an_object(draw, pool, "thing")
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
