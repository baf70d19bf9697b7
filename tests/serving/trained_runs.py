"""Small runs that were really trained, with several checkpoints each."""

import random

import seq2chat
from seq2chat.config import Recipe
from seq2chat.training.run_folder import RunFolder

SENTENCE = "the cat sat on the mat"
PAIR = "a red cat", "eine rote katze"

WORDS = {"a": "eine", "red": "rote", "blue": "blaue", "cat": "katze", "house": "haus"}


def train_gpt(folder, steps=12):
    """Train a GPT with two layers, and return its run."""
    text = folder.parent / "text.txt"
    text.write_text("\n".join(f"{SENTENCE} and saw {i} dogs." for i in range(300)))
    gpt = {"context": 32, "n_layer": 2, "n_head": 2, "d_model": 32}
    return trained(folder, {"data": {"corpus": str(text)}, "model": gpt}, steps)


def train_rnn(folder, steps=6):
    """Train an RNN on a few words, and return its run."""
    table = folder.parent / "pairs.tsv"
    rng = random.Random(0)
    lines = [[rng.choice(list(WORDS)) for _ in range(3)] for _ in range(200)]
    rows = (f"{' '.join(line)}\t{' '.join(WORDS[word] for word in line)}" for line in lines)
    table.write_text("\n".join(rows))
    rnn = {"family": "seq2seq", "d_embed": 16, "d_model": 16}
    return trained(folder, {"data": {"corpus": str(table)}, "model": rnn}, steps)


def trained(folder, tables, steps):
    train = {"budget": f"{steps} steps", "batch_size": 4, "compile": "off", "precision": "fp32"}
    train |= {"checkpoints": 3, "keep": 3, "evals": 3, "samples": 2}
    seq2chat.train(
        Recipe.from_tables(tables | {"tokenizer": {"vocab_size": 300}, "train": train}), folder
    )
    return RunFolder(folder)
