"""Units of loss: what is summed, and over what."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2chat.config import DataConfig, GPTConfig
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import evaluation_batches
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.shards import shards_in_memory
from seq2chat.training.evaluation import Evaluation, evaluate, token_lengths
from seq2chat.training.language_modeling import causal_lm

TOKENIZER = ByteBPE.train(["the river río straße 日本語 the other river runs " * 4] * 3, 300)
LENGTHS = token_lengths(TOKENIZER)


def test_units_follow_from_the_sum():
    e = Evaluation(loss_sum=100.0, tokens=50, bytes=200, characters=160)
    assert (e.loss, e.perplexity, e.loss_per_character) == (2.0, math.exp(2.0), 0.625)
    assert e.bits_per_byte == pytest.approx(0.5 / math.log(2))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_token_lengths_add_up_to_bytes_and_characters(text):
    n_bytes, n_characters = (
        LENGTHS[torch.tensor(TOKENIZER.encode(text), dtype=torch.long)].sum(0).tolist()
    )
    assert (n_bytes, n_characters) == (len(text.encode()), len(text))


@settings(deadline=None, max_examples=20)
@given(text=st.text("ther ío日\n", min_size=1, max_size=80), batch_size=st.integers(1, 3))
def test_evaluation_scores_every_token_of_the_text_once(text, batch_size):
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=TOKENIZER.vocab_size, context=8, n_layer=1, n_head=2, d_model=16)
    ).double()
    torch.nn.init.normal_(model.lm_head.weight)
    text = text + "e"
    shards = shards_in_memory([text], TOKENIZER)
    result = evaluate(model, causal_lm, evaluation_batches(shards, 8, batch_size), LENGTHS)
    ids = [TOKENIZER.eos_id, *TOKENIZER.encode(text)]
    expected = 0.0
    for first in range(0, len(ids) - 1, 8):
        window = torch.tensor([ids[first : first + 9]])
        logits = model(window[:, :-1])
        expected += F.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    assert result.loss_sum == pytest.approx(expected, rel=1e-9)
    assert (result.tokens, result.bytes, result.characters) == (
        len(ids) - 1,
        len(text.encode()),
        len(text),
    )


def test_evaluation_leaves_the_mode_and_uses_no_dropout():
    model = GPT(
        GPTConfig(
            vocab_size=TOKENIZER.vocab_size, context=8, n_layer=1, n_head=2, d_model=16, dropout=0.5
        )
    )
    torch.nn.init.normal_(model.lm_head.weight)
    shards = shards_in_memory(["the river runs"], TOKENIZER)
    a, b = (
        evaluate(model.train(), causal_lm, evaluation_batches(shards, 8, 2), LENGTHS)
        for _ in range(2)
    )
    assert a == b
    assert model.training


@pytest.mark.parametrize("tokens", [100, 0])
def test_few_tokens_of_a_large_text_are_a_sample(tokens, tmp_path, monkeypatch):
    from seq2chat.inference import evaluate as evaluation

    file = tmp_path / "big.txt"
    file.write_text("The river runs to the sea.\n" * 400_000)
    read = []

    def in_memory(parts, tokenizer):
        read.extend(len(part.text) for part in parts)
        return shards_in_memory(["The river"], tokenizer)

    monkeypatch.setattr(evaluation, "shards_in_memory", in_memory)
    model = GPT(
        GPTConfig(vocab_size=TOKENIZER.vocab_size, context=8, n_layer=1, n_head=1, d_model=8)
    )
    window = evaluation.Window(2, 8, tokens)
    evaluation._other_text(DataConfig(corpus=str(file)), model, TOKENIZER, window)
    assert max(read) <= 1 << 20
    assert sum(read) == 10_800_000 if tokens == 0 else 3_000_000 < sum(read) < 5_000_000
