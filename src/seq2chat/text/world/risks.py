"""Families that tempt a model to invent facts: questions that the passage doesn't answer, and
questions with a false premise."""

from __future__ import annotations

from seq2chat.text.world.lexicon import A, Draw, Pool, pick, some
from seq2chat.text.world.passages import RELATIONS, WHAT, WHERE, framed, thing, two_things
from seq2chat.text.world.question import Draft

PREMISE = {
    "train": {
        "has": ("What colour is the {lie} of {p}?", "Where did {p} find the {lie}?"),
        "went": ("What did {p} see in {lie}?", "Why did {p} go to {lie}?"),
        "buys": ("Why does {p} buy {lie}?", "Where does {p} buy {lie}?"),
    },
    "test": {
        "has": ("How big is the {lie} of {p}?", "Who gave {p} the {lie}?"),
        "went": ("Whom did {p} meet in {lie}?", "When did {p} go to {lie}?"),
        "buys": ("When does {p} buy {lie}?", "For whom does {p} buy {lie}?"),
    },
}


def unanswerable(draw: Draw, pool: Pool) -> Draft:
    """Return a question about something that the passage does not contain."""
    p, q, third = some(draw, pool.people, 3)
    spot, lie_spot = some(draw, pool.spots, 2)
    verb, base, of = pick(draw, RELATIONS)
    (one, _), (two, _) = two_things(draw, pool, of)
    if draw() < 0.5:
        lines = [f"{p.name} {verb} {one}.", f"{q.name} is in {spot}."]
        wording = pick(draw, WHERE[pool.wording])
        answer = f"The text does not say where {p.name} is."
        wrong = (f"{p.name} is in {spot}.", f"{p.name} is in {lie_spot}.")
    else:
        p, third = (third, p) if draw() < 0.5 else (p, third)
        lines = [f"{q.name} {verb} {one}.", f"{third.name} is in {spot}."]
        if draw() < 0.5:
            lines[1] = f"{p.name} is in {spot}."
        wording = pick(draw, WHAT[pool.wording])
        answer = f"The text does not say what {p.name} {verb}."
        wrong = (f"{p.name} {verb} {one}.", f"{p.name} {verb} {two}.")
    if draw() < 0.5:
        lines.reverse()
    text, template = framed(draw, pool, " ".join(lines), wording, p=p.name, verb=verb, base=base)
    return Draft(text=text, answer=answer, check="admit", key=(), wrong=wrong, template=template)


def false_premise(draw: Draw, pool: Pool) -> Draft:
    """Return a question that contradicts the passage."""
    p = pick(draw, pool.people).name
    about = pick(draw, ("has", "went", "buys"))
    wording = pick(draw, PREMISE[pool.wording][about])
    if about == "has":
        true, lie = some(draw, pool.animals, 2)
        passage = f"{p} has {A[true]}."
        answer = f"{p} does not have {A[lie]}. {p} has {A[true]}."
        wrong = (f"The {lie} of {p} is brown.", f"{p} found the {lie} in {pick(draw, pool.spots)}.")
    elif about == "went":
        true, lie = some(draw, pool.places, 2)
        passage = f"{p} went to {true}."
        answer = f"{p} did not go to {lie}. {p} went to {true}."
        wrong = (
            f"{p} saw {thing(draw, pool, 'animal')[0]} in {lie}.",
            f"{p} went to {lie} to see {A['dog']}.",
        )
    else:
        true, lie = some(draw, pool.foods, 2)
        passage = f"{p} buys {A[true]}."
        answer = f"{p} does not buy {A[lie]}. {p} buys {A[true]}."
        wrong = (
            f"{p} buys {A[lie]} because {A[lie]} is good.",
            f"{p} buys {A[lie]} in {pick(draw, pool.spots)}.",
        )
    lie_words = A[lie] if about == "buys" else lie
    text, template = framed(draw, pool, passage, wording, p=p, lie=lie_words)
    return Draft(
        text=text, answer=answer, check="correct", key=(lie, true), wrong=wrong, template=template
    )
