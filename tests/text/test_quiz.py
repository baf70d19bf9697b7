import random
import time
from collections import Counter

import pytest

from seq2chat.config import UserError
from seq2chat.text.quiz import Quiz
from seq2chat.text.statements import statements
from seq2chat.text.world import gold
from seq2chat.text.world.lexicon import ALL
from seq2chat.text.world.stories import story


@pytest.fixture(scope="module")
def text():
    draw = random.Random(1).random
    return " ".join(story(draw, ALL) for _ in range(300))


@pytest.fixture(scope="module")
def quiz(text):
    return Quiz("stories.txt", text)


def test_an_english_text_with_people_has_all_families(quiz):
    assert quiz.families == ("finish", "next", "who", "where", "unanswerable")
    assert quiz.missing == ""


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_right_answers_are_graded_right_and_wrong_ones_wrong(quiz, split):
    for question in quiz.questions(split, 200, seed=3):
        assert gold(question, question.answer).score == 1, question
        for wrong in question.wrong:
            assert gold(question, wrong).correctness == 0, (question, wrong)


def test_answers_come_from_the_text(quiz, text):
    for question in quiz.questions("test", 200):
        if question.family != "unanswerable":
            assert question.answer[1:-1] in text


def test_the_passage_answers_what_can_be_answered_and_nothing_else(quiz):
    for question in quiz.questions("test", 300):
        prompt = question.messages[0].content
        if question.family in ("who", "where"):
            assert question.answer in prompt
            assert question.key[0] in prompt
        if question.family == "unanswerable":
            deed = prompt.rsplit("Please say who ", 1)[1]
            assert all(f"{person.name} {deed}" not in prompt for person in ALL.people)


def test_splits_ask_about_different_sentences(quiz):
    n_times = Counter(statement.text for statement in quiz.statements)
    for families in (("who", "where"), ("next",)):
        train, test = (
            {
                q.answer
                for q in quiz.questions(split, 600)
                if q.family in families and n_times[q.answer] == 1
            }
            for split in ("train", "test")
        )
        assert train and test and not train & test


def test_questions_are_a_function_of_their_arguments(quiz, text):
    assert quiz.questions("dev", 50, 7) == Quiz("stories.txt", text).questions("dev", 50, 7)
    assert quiz.questions("dev", 50, 7) != quiz.questions("dev", 50, 8)


def test_documents_are_questions_with_right_answers(quiz):
    documents = list(quiz.documents(50, seed=1))
    assert len(documents) == 50
    for document in documents:
        first, *_ = document.split("\n")
        assert first.startswith("Question: ")
        for line in document.split("\n")[1::2]:
            answer = line.removeprefix("Answer: ")
            assert answer in first or answer == "The text does not say.", document


def test_a_text_in_another_language_keeps_the_families_of_any_language():
    rng = random.Random(1)
    words = ["дом", "стоит", "у", "реки", "где", "растёт", "старый", "дуб", "поёт", "птица"]
    text = " ".join(" ".join(rng.sample(words, 8)).capitalize() + "." for _ in range(400))
    quiz = Quiz("text.txt", text)
    assert quiz.families == ("finish", "next")
    assert "not English" in quiz.missing
    for question in quiz.questions("test", 50):
        assert gold(question, question.answer).correctness == 1
        assert gold(question, question.wrong[0]).correctness == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Tom ran home. " * 20, "has 20 sentences"),
        ("no end at all " * 5000, "has 0 sentences"),
        ("x = 1\ny = 2\n" * 500, "has 0 sentences"),
        ("Yes it is. " * 500, "too few sentences of 4 to 14 words"),
        ("He ran to the old house. " * 500, "too few sentences of 4 to 14 words"),
    ],
)
def test_a_text_without_enough_sentences_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        Quiz("my.txt", text)


PROSE = """
Mr. Bell walked to the old bridge. "Who is there?" he asked. Nobody answered him that night.

Anna's eyes were full of tears. I've found the key to the house. I do not know.
The rain fell on St. Mary all day. William Button died in the tower.
"""


def test_prose_is_split_into_whole_sentences_with_their_names():
    told = {s.text: (s.name, s.place) for s in statements(PROSE + "Then Anna met William. " * 3)}
    assert told["Mr Bell walked to the old bridge."] == ("", "")
    assert '"Who is there?" he asked.' not in told
    assert told["Anna's eyes were full of tears."][0] == ""
    assert told["I've found the key to the house."][0] == ""
    assert told["The rain fell on St Mary all day."] == ("", "")
    assert told["William Button died in the tower."] == ("William Button", "in the tower")


def test_only_neighbors_of_one_paragraph_follow_each_other():
    numbers = {s.text: s.number for s in statements(PROSE)}
    first, last = numbers["Mr Bell walked to the old bridge."], numbers["I do not know."]
    assert numbers["Nobody answered him that night."] == first + 2  # behind the quoted one
    assert numbers["Anna's eyes were full of tears."] == first + 4  # in another paragraph
    assert numbers["The rain fell on St Mary all day."] == last + 1


@pytest.mark.parametrize("letters", ["אבגדהוזחטי", "abcdefghij"])
def test_a_text_without_capitals_has_questions(letters):
    rng = random.Random(1)
    words = [a + b for a in letters for b in letters]
    text = " ".join(" ".join(rng.sample(words, 8)) + "." for _ in range(600))
    quiz = Quiz("text.txt", text)
    assert quiz.families == ("finish", "next")
    assert len(quiz.questions("train", 100)) == 100


@pytest.mark.parametrize(
    "sentence",
    [
        "He was beaten by his father.",
        "She came back in the morning.",
        "He always spoke in a low voice.",
        "She laughed and laughed at his joke.",
        "German soldiers marched through it.",
        "'You ought to be ashamed of it.",
    ],
)
def test_what_is_neither_a_person_nor_a_place(sentence):
    text = f"The German was in the old house with us. {sentence} We know the German and it was so."
    assert all(not s.name and not s.place for s in statements(text) if s.text == sentence)


def test_a_text_without_full_stops_takes_no_time():
    began = time.perf_counter()
    assert not statements("no end at all " * 100_000)
    assert time.perf_counter() - began < 5
