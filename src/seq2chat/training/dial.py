"""One dial: from a budget to a recipe, by measuring the machine and the text."""

import math
from collections.abc import Callable
from typing import Any

from seq2chat.config import Budget, TrainConfig
from seq2chat.device import describe_machine, pick_device, pick_precision
from seq2chat.text.corpus import load_corpus
from seq2chat.text.shards import split_texts

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), table 3
UTILISATION = 0.45  # share of the measured peak that training reaches; benchmarks/train_step.py
USEFUL_EPOCHS = 16  # Muennighoff et al. 2023, section 5: what is repeated more often hardly teaches


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
    tokens takes 6 N D FLOPs, and D = 20 N uses them best; where that would repeat the text more often than is useful,
    what is left goes into more parameters. Depth follows width at 64 of width a layer.
    """
    vocab_size = min(8192, max(512, 2 ** round(math.log2(max(1, characters) / 1000))))
    characters_per_token = 1.2 + 0.28 * math.log2(vocab_size / 256)
    flops = 0.85 * seconds * UTILISATION * peak_flops
    tokens = math.sqrt(flops / 6 * TOKENS_PER_PARAMETER)
    epochs = tokens / (characters / characters_per_token)
    if epochs > USEFUL_EPOCHS:
        tokens = math.sqrt(tokens * USEFUL_EPOCHS * characters / characters_per_token)
    parameters = flops / 6 / tokens
    n_layer = min(48, max(2, round((parameters / (12 * 64**2)) ** (1 / 3))))
    width = math.sqrt(parameters / (12 * n_layer))
    d_model = max(128, 64 * round(width / 64))
    context = 256 if characters < 100_000_000 else 1024
    return {
        "tokenizer": {"vocab_size": vocab_size},
        "model": {
            "n_layer": n_layer,
            "n_head": d_model // 64,
            "d_model": d_model,
            "context": context,
            "dropout": 0.0 if epochs < 2 else 0.1 if epochs < 8 else 0.2,
        },
        "train": {"batch_size": 16},
    }
