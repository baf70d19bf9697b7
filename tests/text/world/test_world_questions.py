"""Questions are the same each time, of every family alike, and those of the test split are new."""

import random
import re
from collections import Counter
from itertools import combinations

import pytest

from seq2chat.config import UserError
from seq2chat.text.world import FAMILIES, READING, RISKS, SPLITS, Question, candidates, questions
from seq2chat.text.world.families import SYSTEM
from seq2chat.text.world.lexicon import COLORS, JOBS, kind, words
from seq2chat.text.world.manners import DECLINE
from seq2chat.text.world.smalltalk import OUTSIDE_ANSWER

N = 40 * len(FAMILIES)


def texts(question: Question) -> list[str]:
    return [message.content for message in question.messages if message.role != "system"]


def test_there_are_twenty_one_skills_and_four_risks():
    assert len(FAMILIES) == len(set(FAMILIES)) == 25 and len(RISKS) == 4
    assert set(RISKS) < set(FAMILIES) and set(READING) < set(FAMILIES)


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_a_function_of_their_arguments(split):
    once = questions(split, N, seed=3)
    assert once == questions(split, N, seed=3)
    assert once != questions(split, N, seed=4)
    assert questions(split, 25, seed=-1) != questions(split, 25, seed=1)
    assert Counter(question.family for question in once) == dict.fromkeys(FAMILIES, 40)
    assert [question.family for question in once] != sorted(question.family for question in once)


def test_seeds_draw_different_questions():
    first, second = ({str(texts(q)) for q in questions("train", N, seed=seed)} for seed in (0, 1))
    # Greetings, the model itself and questions from outside have few wordings.
    assert len(first) > 0.85 * N
    assert len(first & second) < 0.15 * N


def test_families_can_be_chosen():
    assert {question.family for question in questions("train", 10, families=["copy", "who"])} == {
        "copy",
        "who",
    }
    assert questions("train", 0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("valid", 1), "no split 'valid'"),
        (("train", -1), "of 0 or more"),
        (("train", 1, 0, []), "at least one family"),
        (("train", 1, 0, ["rhyme"]), "no family 'rhyme'"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        questions(*arguments)


def test_splits_share_no_template():
    parts = [
        {part for question in questions(split, 4 * N) for part in question.template.split("|")}
        for split in SPLITS
    ]
    for one, other in combinations(parts, 2):
        assert min(len(one), len(other)) > 40
        assert not one & other
    for one, other in combinations(SYSTEM.values(), 2):
        assert not set(one) & set(other)


def test_splits_share_no_words_and_no_sums():
    def named(split: str) -> set[str]:
        every = {
            word
            for question in questions(split, 4 * N)
            for text in texts(question)
            for word in words(text)
        }
        return {word for word in every if kind(word) in ("person", "place", "noun", "tool")}

    for one, other in combinations(map(named, SPLITS), 2):
        assert min(len(one), len(other)) > 40
        assert not one & other
    sums = [
        {
            tuple(words(question.answer)[:3])
            for question in questions(split, 400, families=["arithmetic"])
        }
        for split in SPLITS
    ]
    for one, other in combinations(sums, 2):
        assert not one & other


def masked(text: str) -> str:
    """The text without what differs from question to question of a template."""
    kept = [
        word if not kind(word) and word not in (*COLORS, *JOBS) else "_" for word in words(text)
    ]
    return re.sub(r"(\b_\b ?)+", "_ ", " ".join(kept))


def test_splits_share_no_wordings():
    wordings = [
        {masked(texts(question)[-1]) for question in questions(split, 4 * N)} for split in SPLITS
    ]
    for one, other in combinations(wordings, 2):
        assert not one & other


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_and_answers_are_short(split):
    for question in questions(split, 4 * N, seed=8):
        prompt = [re.findall(r"\w+|[^\w\s]", message.content) for message in question.messages]
        assert sum(map(len, prompt)) <= 70, question
        assert len(re.findall(r"\w+|[^\w\s]", question.answer)) <= 20


def test_conversations_are_well_formed():
    """Some have a system message or several turns."""
    asked = questions("train", N)
    for question in asked:
        turns = [message.role for message in question.messages if message.role != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert "system" not in [message.role for message in question.messages[1:]]
    roles = Counter(question.messages[0].role for question in asked)
    assert 0.1 < roles["system"] / N < 0.2
    assert {question.family for question in asked if len(texts(question)) == 3} == {"dialogue"}


def test_candidates_are_six_to_nine_different_answers():
    generator = random.Random(1)
    counts = Counter()
    for question in questions("train", N):
        answers = candidates(question, generator)
        counts[len(answers)] += 1
        assert len(set(answers)) == len(answers) and all(answer.strip() for answer in answers)
    assert set(counts) == {6, 7, 8, 9}
    question = questions("train", 1)[0]
    assert candidates(question, random.Random(2)) == candidates(question, random.Random(2))


@pytest.mark.parametrize("safe", [DECLINE, OUTSIDE_ANSWER, "The text does not say."])
def test_safe_answers_are_candidates_where_they_are_wrong(safe):
    """A reward model that never saw them ranked low would prefer them to right answers."""
    generator = random.Random(1)
    answerable = [q for q in questions("train", N) if q.family not in RISKS]
    n_safe = sum(safe in candidates(question, generator) for question in answerable)
    assert n_safe / len(answerable) > 0.1
