"""Measures of looking up agree with the definition, and are at chance for a model that cannot."""

import dataclasses

import pytest
import torch

from seq2chat.config import GPTConfig
from seq2chat.models.gpt import GPT
from seq2chat.text import world
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import CHAT_TEMPLATE, END, START
from seq2chat.training.lookup import as_chat, as_text, induction_score, pair_accuracy


@pytest.fixture(scope="module")
def untrained():
    texts = [q.messages[-1].content for q in world.questions("dev", 200)]
    tokenizer = ByteBPE.train(texts, 400).with_chat((START, END), "<|pad|>", CHAT_TEMPLATE)
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size, "context": 160, "n_layer": 2, "n_head": 2}
    return GPT(GPTConfig(**shape, d_model=32)).eval(), tokenizer


def test_a_random_model_is_at_chance(untrained):
    model, tokenizer = untrained
    questions = world.questions("dev", 200, families=world.READING)
    assert 0.3 < pair_accuracy(model, questions, as_text(tokenizer)) < 0.7
    assert induction_score(model) < 0.05


@pytest.mark.parametrize("encoding", [as_text, as_chat])
def test_swapping_right_and_wrong_gives_the_complement(untrained, encoding):
    model, tokenizer = untrained
    questions = world.questions("dev", 50, families=world.READING)
    swapped = [
        dataclasses.replace(q, answer=q.wrong[0], wrong=(q.answer, *q.wrong[1:])) for q in questions
    ]
    right = pair_accuracy(model, questions, encoding(tokenizer), batch_size=7)
    wrong = pair_accuracy(model, swapped, encoding(tokenizer), batch_size=50)
    assert right + wrong == pytest.approx(1.0)


def test_pair_is_compared_by_log_probability(untrained):
    model, tokenizer = untrained
    question = world.questions("dev", 1, families=["where"])[0]
    encode = as_text(tokenizer)

    def logp(answer: str) -> float:
        ids, n = encode(question, answer)
        with torch.no_grad():
            table = model(torch.tensor([ids]))[0].log_softmax(-1)
        return sum(table[t - 1, ids[t]].item() for t in range(n, len(ids)))

    expected = float(logp(question.answer) > logp(question.wrong[0]))
    assert pair_accuracy(model, [question], encode) == expected


def test_only_the_answer_is_scored(untrained):
    _, tokenizer = untrained
    question = world.questions("dev", 1, families=["who"])[0]
    ids, n = as_text(tokenizer)(question, question.answer)
    assert tokenizer.decode(ids[n:]) == f" {question.answer}"
    ids, n = as_chat(tokenizer)(question, question.answer)
    assert tokenizer.decode(ids[n:]) == question.answer
