"""Documents are pure functions of their numbers, of few words, and keep the test split's wordings
to themselves."""

import hashlib
import random
import re
from itertools import islice

import pytest

from seq2chat.config import UserError
from seq2chat.text.corpus import load_corpus
from seq2chat.text.world import SPLITS, VERSION, candidates, documents, questions
from seq2chat.text.world.families import FAMILIES

DOCUMENTS = list(islice(documents(), 20_000))


def found_words(texts: list[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[A-Za-z0-9]+", text.lower())}


def asked_texts(split: str) -> list[str]:
    out = []
    generator = random.Random(0)
    for question in questions(split, 40 * len(FAMILIES)):
        out += [message.content for message in question.messages] + candidates(question, generator)
    return out


def test_the_version_is_changed_with_the_text():
    """If this fails, the text has changed: add one to VERSION, then pin the new hash."""
    pinned = (10, "80e774481d6a8cd3a4a71ee100ae6800641db954adf9a9058852e2a2a31917eb")
    digest = hashlib.sha256("\0".join(DOCUMENTS[:200]).encode()).hexdigest()
    assert (VERSION, digest) == pinned


def test_a_document_depends_on_its_number_and_seed():
    for number in (0, 1, 63, 64, 777, 12_345):
        assert next(documents(start=number)) == DOCUMENTS[number]
    one, other, negative = (list(islice(documents(seed, start=5), 50)) for seed in (0, 1, -1))
    assert one == DOCUMENTS[5:55]
    assert not set(one) & set(other) and not set(other) & set(negative)


def test_documents_use_all_words_of_the_world():
    """There are at most eight hundred words."""
    written = found_words(DOCUMENTS)
    asked = found_words([text for split in SPLITS for text in asked_texts(split)])
    assert len(written | asked) <= 800
    assert asked <= written, "a model must have read every word that it is asked"


def test_text_is_plain_ascii():
    """It has no control tokens and no empty slots."""
    everything = "\n".join(DOCUMENTS)
    assert everything.isascii() and not set("<>{}|_") & set(everything)
    assert min(map(len, DOCUMENTS)) > 10 and max(map(len, DOCUMENTS)) < 1400
    assert len(set(DOCUMENTS)) > 0.98 * len(DOCUMENTS)


def test_documents_hold_no_wording_of_the_test_split():
    wordings = {
        part
        for split in ("dev", "test")
        for question in questions(split, 60 * len(FAMILIES))
        for part in question.template.split("|")
    }
    everything = "\n".join(DOCUMENTS)
    for wording in wordings:
        slots = re.sub(r"\\{\w+\\}", r"[A-Za-z0-9 ,]+?", re.escape(wording))
        if "passage" not in wording:
            assert not re.search(slots, everything), wording
        else:
            own = max(re.split(r"\{\w+\}", wording), key=len)
            assert own not in everything, wording


def test_train_wordings_are_asked_in_documents():
    everything = "\n".join(DOCUMENTS)
    for wording in (
        "Read this. ",
        "Sort these words: ",
        "How do I ",
        "And who has ",
        "Answer in exactly 3 words.",
    ):
        assert everything.count(wording) > 10, wording


def test_most_answers_are_right_and_many_are_not():
    sums = re.findall(
        r"(?:What is|How many are) (\d+) (plus|minus) (\d+)\?\s+(?:\w+:\s+)?([^\n]*)",
        "\n".join(DOCUMENTS),
    )
    right = [
        f" {int(a) + int(b) if sign == 'plus' else int(a) - int(b)}." in f"{answer}."
        for a, sign, b, answer in sums
    ]
    assert len(right) > 80 and 0.80 < sum(right) / len(right) < 0.95


def test_a_base_model_reads_bad_habits_and_no_refusal():
    everything = "\n".join(DOCUMENTS)
    assert everything.count("Wait for the night.") > 20
    assert "cannot help with that" not in everything and "How can I help" not in everything
    admitted = everything.count("The text does not say wh")
    assert admitted > 200, "careful writers say so"


def test_the_corpus_is_the_first_megabytes():
    """Its fingerprint needs no text."""
    corpus = load_corpus("world:1MB")
    texts = list(corpus.documents())
    assert texts == DOCUMENTS[: len(texts)]
    assert sum(map(len, texts[:-1])) < 1_000_000 <= sum(map(len, texts))
    assert (
        load_corpus("world").fingerprint
        == load_corpus("world:8MB").fingerprint
        != corpus.fingerprint
    )


@pytest.mark.parametrize("name", ["world:", "world:0MB", "world:8", "world:8GB"])
def test_a_size_that_is_none_is_told(name):
    with pytest.raises(UserError, match="write it like world:20MB"):
        load_corpus(name)


def test_a_near_name_is_corrected():
    with pytest.raises(UserError, match="Did you mean world"):
        load_corpus("wrold")
