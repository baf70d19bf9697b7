"""One dial: from a budget to a recipe, by measuring the machine and the text."""

import math
from collections.abc import Callable
from typing import Any

from seq2chat.config import Budget, TrainConfig
from seq2chat.device import describe_machine, pick_device, pick_precision
from seq2chat.text.corpus import load_corpus
from seq2chat.text.shards import split_texts

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), table 3
USEFUL_EPOCHS = 8  # repeated more often, a text teaches a larger model more than the same model again; docs/log.md
MOST_PARAMETERS = 20  # for each token of the text
UTILISATION = 0.4  # share of the measured peak that training reaches; benchmarks/train_step.py


def choose_tables(
    source: str, changes: dict[str, dict[str, Any]], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Tables of a recipe that fit the text `source`, this machine and the budget in `changes`; `say` explains them."""
    characters = sum(map(len, split_texts(load_corpus(source), 0.1, "train")))
    budget = changes.get("train", {}).get("budget", TrainConfig.budget)
    parsed = Budget.parse(budget)
    seconds = parsed.amount if parsed.unit == "seconds" else 600.0
    device = pick_device()
    precision = pick_precision("auto", device)
    say(f"machine: {describe_machine(device)}, {precision.peak_flops / 1e9:,.0f} GFLOP/s in matrix products")
    tables = size_run(characters, seconds, precision.peak_flops)
    model, vocab_size = tables["model"], tables["tokenizer"]["vocab_size"]
    say(f"text: {characters:,} training characters → vocabulary {vocab_size}, dropout {model['dropout']}")
    say(f"budget {budget} → {model['n_layer']} layers of width {model['d_model']}, context {model['context']}")
    return tables | {"data": {"corpus": source}}


def size_run(characters: int, seconds: float, peak_flops: float) -> dict[str, dict[str, Any]]:
    """Vocabulary, shape and dropout for `characters` of training text and `seconds` at `peak_flops`.

    The vocabulary grows with the text, since a token must be seen often to be learned. Training N parameters on D
    tokens takes 6 N D FLOPs, and D = 20 N uses them best; where that would repeat a small text too often, the FLOPs go
    into parameters instead, as far as those can be held in check by dropout. Width is 64 times depth.
    """
    vocab_size = 2 ** min(13, max(9, round(10 + 0.5 * math.log2(max(1, characters) / 1e6))))
    text_tokens = characters / (0.9 + 0.63 * math.log2(vocab_size / 256))
    products = 0.85 * seconds * UTILISATION * peak_flops / 6
    tokens = min(math.sqrt(products * TOKENS_PER_PARAMETER), USEFUL_EPOCHS * text_tokens)
    parameters = min(products / tokens, MOST_PARAMETERS * text_tokens)
    epochs = products / parameters / text_tokens
    d_model = max(128, 64 * round((64 * parameters / 12) ** (1 / 3) / 64))
    return {
        "tokenizer": {"vocab_size": vocab_size},
        "model": {
            "n_layer": max(2, round(parameters / (12 * d_model**2))),
            "n_head": d_model // 64,
            "d_model": d_model,
            "context": 256 if characters < 100_000_000 else 1024,
            "dropout": next(dropout for least, dropout in DROPOUT if epochs >= least),
        },
    }


DROPOUT = ((16, 0.3), (5, 0.2), (2, 0.1), (0, 0.0))  # from so many epochs on; docs/log.md
