"""A fine-tuned model rehearses its own answers to general requests."""

import pytest
import torch

from seq2chat.alignment.rehearsal import can_rehearse, rehearsal, whole_sentences
from seq2chat.alignment.rollout import roll_out
from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import Recipe, UserError, recipe_tables
from seq2chat.inference.load import load_gpt
from seq2chat.text.conversations import Query
from seq2chat.text.general_prompts import GENERAL_PROMPTS


def task(start, n, log=lambda line: None):
    tables = {"align": {"start": str(start), "examples": 40, "rehearse": n}}
    tables["train"] = {"precision": "fp32"}
    recipe = Recipe.from_tables(recipe_tables("sft"), tables)
    return prepare_alignment(recipe, None, torch.device("cpu"), log, lambda line: None)


def test_own_answers_are_trained_besides_the_conversations(fine_tuned):
    plain, rehearsing = task(fine_tuned, 0), task(fine_tuned, 5)
    assert rehearsing.loader.n == plain.loader.n + 5
    assert rehearsing.loader.epoch_tokens > plain.loader.epoch_tokens
    assert len(rehearsing.held_out) == len(plain.held_out)
    # A resumed run on another machine may rehearse other answers, and is not refused.
    assert rehearsing.loader.fingerprint == plain.loader.fingerprint


def test_answers_are_the_most_probable_ones(fine_tuned):
    model, tokenizer = load_gpt(fine_tuned)
    examples = rehearsal(model, tokenizer, 4)
    queries = [Query(d.prompt) for d in examples]
    assert [d.messages[0].content for d in examples] == list(GENERAL_PROMPTS[:4])
    rollout = roll_out(model, tokenizer, queries, 64, temperature=0.0)
    for example, answer in zip(examples, rollout.answers, strict=True):
        assert answer.startswith(example.messages[-1].content)
    with pytest.raises(UserError, match=rf"there are {len(GENERAL_PROMPTS)} general requests"):
        rehearsal(model, tokenizer, 1000)


def test_a_model_that_has_not_learned_to_chat_rehearses_nothing(base):
    lines = []
    assert not can_rehearse(str(base))
    assert task(base, 5, lines.append).loader.n == task(base, 0).loader.n
    assert any("nothing is rehearsed" in line for line in lines)


def test_answers_without_an_end_are_cut_after_a_sentence():
    assert whole_sentences("One. Two! Thr") == "One. Two!"
    assert whole_sentences("1. a\n2. b") == "1. a\n2."
    assert whole_sentences("no end at all") == "no end at all"
