"""Families that tempt a model to invent facts: questions that the passage doesn't answer, and
questions with a false premise."""

from __future__ import annotations

from seq2chat.text.world.lexicon import A, Draw, Pool, Split, pick, some
from seq2chat.text.world.passages import framed
from seq2chat.text.world.question import Draft
from seq2chat.text.world.scenes import (
    IN,
    RELATIONS,
    WHAT,
    WHERE,
    Fact,
    an_object,
    another,
    denial,
    scene,
    stranger,
    told,
)

PREMISE: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "has": ("What color is the {lie} of {p}?", "Where did {p} find the {lie}?"),
        "went": ("What did {p} see in {lie}?", "Why did {p} go to {lie}?"),
        "buys": ("Why does {p} buy {lie}?", "Where does {p} buy {lie}?"),
    },
    "dev": {
        "has": ("How old is the {lie} of {p}?", "Where does the {lie} of {p} sleep?"),
        "went": ("How did {p} get to {lie}?", "What did {p} eat in {lie}?"),
        "buys": ("How much is the food if {p} buys {lie}?", "With whom does {p} buy {lie}?"),
    },
    "test": {
        "has": ("How big is the {lie} of {p}?", "Who gave {p} the {lie}?"),
        "went": ("Whom did {p} meet in {lie}?", "When did {p} go to {lie}?"),
        "buys": ("When does {p} buy {lie}?", "For whom does {p} buy {lie}?"),
    },
}


def unanswerable(draw: Draw, pool: Pool) -> Draft:
    """Return a question about something that the passage does not contain.

    It asks where a person is of whom the passage says something else, or what a person has of whom
    it says only the place, or about a person whom it does not mention.
    """
    relation = pick(draw, RELATIONS)
    asks_where = draw() < 0.5
    facts = scene(draw, pool, 2 + int(draw() * 2), IN if asks_where else relation, same=1.0)
    is_mentioned = draw() >= 0.5
    p = stranger(draw, pool, facts)
    lines = [fact.text for fact in facts]
    if is_mentioned:
        other_relation = relation if asks_where else IN
        what, key = an_object(draw, pool, other_relation.of)
        lines.append(Fact(p, other_relation, what, key).text)
    fact = facts[0]
    lie = Fact(p, fact.relation, fact.what, fact.key)
    wrong = (lie.text, another(draw, pool, lie, facts))
    wording = pick(draw, (WHERE if asks_where else WHAT)[pool.wording])
    question = wording.format(p=p.name, verb=relation.verb, base=relation.base)
    text, frame = framed(draw, pool, told(draw, lines), question)
    return Draft(
        text=text,
        answer=denial(p, fact.relation),
        check="admit",
        key=(),
        wrong=wrong,
        template=f"{frame}|{wording}",
    )


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
            f"{p} saw {an_object(draw, pool, 'animal')[0]} in {lie}.",
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
    text, frame = framed(draw, pool, passage, wording.format(p=p, lie=lie_words))
    template = f"{frame}|{wording}"
    return Draft(
        text=text, answer=answer, check="correct", key=(lie, true), wrong=wrong, template=template
    )
