"""One dial: from a budget to a recipe, by measuring the machine and the text."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seq2chat.config import Budget, GPTConfig, ModelConfig, Recipe, check, recipe_tables
from seq2chat.device import Precision, describe_machine, pick_device, pick_precision, synchronize
from seq2chat.models.folder import load_config
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import Batch
from seq2chat.text.corpus import load_corpus
from seq2chat.text.parallel import NAMED_PAIRS
from seq2chat.training.checkpoint import find_checkpoint
from seq2chat.training.language_modeling import causal_lm
from seq2chat.training.optim import make_optimizers

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), table 3
# Repeated more often, a text teaches a larger model more than the same model again; docs/log.md.
USEFUL_EPOCHS = 8
MOST_PARAMETERS = 20  # for each token of the text
STEPS = 1000
LEAST_CHARACTERS = 1000
START_RATE = 0.3  # of a fresh model's peak, for one that has been trained before
LEAST_SAMPLE = 8_000_000  # characters of a text that is too large to be read whole
# The families whose size is not chosen by measuring, and whose recipe is taken instead.
BORROWED = {
    "seq2seq": "multi30k-attention",
    "transformer": "multi30k-transformer",
    "bert": "bert-wikitext",
}
READY_SECONDS = 20  # of a timed run go into imports, tokenizer, shards and compiling
PROBED_ROWS = 4  # sequences in the training steps that are timed
GUESSED_SHARE = 0.1  # of the measured peak that training reaches, until it is measured


def choose_tables(
    source: str, changes: dict[str, dict[str, Any]], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Tables of a recipe that fit the text `source`, this machine and the budget; `say` explains
    each choice.

    `changes` are options already given; they are laid over the result, and what depends on them
    follows them here.
    """
    is_parallel = source in NAMED_PAIRS or "source" in changes.get("data", {})
    start = changes.get("train", {}).get("start", "")
    shape = load_config(find_checkpoint(Path(start))) if start else None
    family = changes.get("model", {}).get("family", "transformer" if is_parallel else "gpt")
    if shape is not None:
        family = shape.family
        preset = changes.get("model", {}).get("preset")
        check(preset is None, f"{start} has a shape of its own; leave model.preset {preset} out.")
    # An unknown family is refused before anything is measured.
    Recipe.from_tables({"model": {"family": family}})
    if family in BORROWED:
        tables = _borrow(family, source, say)
        return tables if shape is None else _start_from(start, shape, tables, say)
    data = Recipe.from_tables({"data": changes.get("data", {})}).data
    train = Recipe.from_tables({"train": changes.get("train", {})}).train
    characters = int(load_corpus(source, data.field).n_characters * (1 - data.val_fraction))
    check(
        characters >= LEAST_CHARACTERS,
        f"{source} has {characters} characters to train on; give a text of at least "
        f"{LEAST_CHARACTERS:,}.",
    )
    device = pick_device()
    precision = pick_precision(train.precision, device)
    tables = fit_run(characters, Budget.parse(train.budget), changes, device, precision)
    epochs = tables.pop("epochs")
    if shape is not None:
        tables = _start_from(start, shape, tables, say)
    chosen = Recipe.from_tables(tables, changes)
    say(
        f"machine: {describe_machine(device)}, {precision.peak_flops / 1e9:,.0f} GFLOP/s in matrix "
        "products"
    )
    say(f"text: {characters:,} characters to train on → vocabulary {chosen.tokenizer.vocab_size}")
    preset = changes.get("model", {}).get("preset")
    if preset:
        say(f"model: {preset}, as given")
    else:
        config = chosen.model
        assert isinstance(config, GPTConfig)
        say(
            f"budget {train.budget} → {config.n_layer} layers of width {config.d_model}, context "
            f"{config.context}"
        )
        say(f"the text is then read about {epochs:.1f} times → dropout {config.dropout}")
    if epochs > 4 * USEFUL_EPOCHS:
        say(
            "so small a text is learned by heart: take more text, or "
            f"{4 * USEFUL_EPOCHS / epochs:.1%} of the budget"
        )
    rates = chosen.optim
    say(
        f"steps of {chosen.train.batch_size * chosen.train.accumulation} sequences → learning rates"
        f" {rates.matrix_lr:.3g} for matrices, {rates.embedding_lr:.3g} for embeddings"
    )
    # Four times what the run is expected to read, in case it is faster; the rest would only cost
    # time to prepare.
    sample = int(max(LEAST_SAMPLE, 4 * epochs * characters) / (1 - data.val_fraction))
    is_sampled = characters > 1.5 * sample and "max_characters" not in changes.get("data", {})
    tables["data"] = {"corpus": source, "max_characters": sample if is_sampled else 0}
    if is_sampled:
        say(
            f"the budget can read a part of the text: a sample of {sample:,} characters, spread "
            "over all of it"
        )
    return tables


def _start_from(
    start: str, shape: ModelConfig, tables: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Return `tables` with the shape of the model `start`, and rates that do not undo what it has
    learned."""
    kept = {key: value for key, value in tables.items() if key != "tokenizer"}
    dropout = tables["model"].get("dropout", getattr(shape, "dropout", 0.0))
    rates = {
        name: rate * START_RATE if name.endswith("_lr") else rate
        for name, rate in tables["optim"].items()
    }
    say(
        f"begins with {start}: its shape and its tokenizer, and {START_RATE} times the learning "
        "rates of a fresh model"
    )
    model = {"family": shape.family} | dataclasses.asdict(shape) | {"dropout": dropout}
    return kept | {"model": model, "optim": rates}


def _borrow(family: str, source: str, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Tables of the recipe that was measured for this family, with the user's text in the place of
    its own."""
    tables = recipe_tables(BORROWED[family])
    say(f"shape, rates and budget: those of the recipe {BORROWED[family]}")
    kept = {name: table for name, table in tables.items() if name not in ("data", "expect")}
    return kept | ({"data": {"corpus": source}} if source else {})


def fit_run(
    characters: int,
    budget: Budget,
    changes: dict[str, dict[str, Any]],
    device: torch.device,
    precision: Precision,
) -> dict[str, Any]:
    """Return the result of `size_run` for the speed at which the model that it chooses is really
    trained here.

    Small models reach a few percent of the peak of matrix products, and large ones half of it, so
    the shape is chosen for a guess, measured, and chosen again.
    """
    tables = _follow(size_run(characters, budget, GUESSED_SHARE * precision.peak_flops), changes)
    for _ in range(2 if budget.unit == "seconds" and budget.amount > 120 else 1):
        recipe = _recipe(tables, changes)
        flops = step_flops(recipe) / step_seconds(recipe, device, precision)
        tables = _follow(size_run(characters, budget, flops), changes)
    if budget.unit == "seconds":
        # The smallest models are slower than their FLOPs say, so what the run will read is measured
        # as well.
        recipe = _recipe(tables, changes)
        config = _full_shape(recipe)
        sequences = (
            recipe.train.batch_size
            / step_seconds(recipe, device, precision)
            * _training_seconds(budget)
        )
        tables["train"]["batch_size"] = _batch_size(sequences)
        tables["optim"] = learning_rates(tables["train"]["batch_size"])
        tables["epochs"] = (
            sequences * config.context / text_tokens(characters, recipe.tokenizer.vocab_size)
        )
    return _follow(tables, changes)


def _follow(tables: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return `tables` with the heads of a width that is given, and the rates of a batch that is
    given."""
    model, train = changes.get("model", {}), changes.get("train", {})
    if "d_model" in model:
        n_head = max(1, model["d_model"] // 64)
        tables = tables | {
            "model": tables["model"] | {"d_model": model["d_model"], "n_head": n_head}
        }
    if {"batch_size", "accumulation"} & train.keys():
        batch_size = train.get("batch_size", tables["train"]["batch_size"])
        tables = tables | {"optim": learning_rates(batch_size * train.get("accumulation", 1))}
    return tables


def _recipe(tables: dict[str, Any], changes: dict[str, dict[str, Any]]) -> Recipe:
    return Recipe.from_tables(
        {name: table for name, table in tables.items() if name != "epochs"}, changes
    )


def _training_seconds(budget: Budget) -> float:
    """Return the seconds of a timed budget that are left for training."""
    return max(0.5 * budget.amount, budget.amount - READY_SECONDS) * 0.9


def _batch_size(sequences: float) -> int:
    """Return the batch that leaves about a thousand steps of so many sequences."""
    return 2 ** min(6, max(3, round(math.log2(max(1.0, sequences / STEPS)))))


def text_tokens(characters: int, vocab_size: int) -> float:
    """Return about how many tokens a text has."""
    return characters / (0.9 + 0.63 * math.log2(vocab_size / 256))


def step_flops(recipe: Recipe) -> float:
    """Return the floating point operations of one training step of the recipe's model."""
    config = _full_shape(recipe)
    with torch.device("meta"):
        tokens = torch.zeros(recipe.train.batch_size, config.context, dtype=torch.int64)
        return float(GPT(config).flops(Batch(tokens, tokens)))


def step_seconds(recipe: Recipe, device: torch.device, precision: Precision) -> float:
    """Return the seconds of a training step of the recipe's model, the fastest of two on random
    tokens.

    A CPU is as fast per sequence with a few sequences as with all of a batch, so a few are timed.
    """
    config = _full_shape(recipe)
    rows = (
        recipe.train.batch_size
        if device.type == "cuda"
        else min(PROBED_ROWS, recipe.train.batch_size)
    )
    passes: list[float] = []
    updates: list[float] = []
    with torch.random.fork_rng():
        model = GPT(config).to(device)
        model.compute_dtype = precision.dtype
        optimizers = make_optimizers(model, recipe.optim, precision.dtype)
        tokens = torch.randint(config.vocab_size, (rows, config.context), device=device)
        for _ in range(3):
            began = time.perf_counter()
            loss, n_tokens = causal_lm(model, Batch(tokens, tokens))
            (loss / n_tokens).backward()
            synchronize(device)
            passed = time.perf_counter()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            synchronize(device)
            passes.append(passed - began)
            updates.append(time.perf_counter() - passed)
    return min(passes[1:]) * recipe.train.batch_size / rows + min(updates[1:])


def _full_shape(recipe: Recipe) -> GPTConfig:
    assert isinstance(recipe.model, GPTConfig)
    return dataclasses.replace(
        recipe.model, vocab_size=recipe.model.vocab_size or recipe.tokenizer.vocab_size
    )


def learning_rates(batch_size: int) -> dict[str, float]:
    """Return the peak rates for steps of so many sequences; they grow with the square root (Malladi
    et al. 2022)."""
    scale = math.sqrt(batch_size / 16)
    return {"matrix_lr": 0.02 * scale, "embedding_lr": 0.02 * scale, "head_lr": 0.004 * scale}


def size_run(characters: int, budget: Budget, flops: float) -> dict[str, Any]:
    """Vocabulary, shape, batch and rates for `characters` of training text and a `budget` at
    `flops` per second.

    The vocabulary grows with the text, since a token must be seen often to be learned. Training N
    parameters on D tokens takes 6 N D FLOPs, and D = 20 N uses them best; where that would repeat a
    small text too often, the FLOPs go into parameters instead, as far as those can be held in check
    by dropout. Width is 64 times depth. The batch leaves about a thousand steps, and the learning
    rates grow with its square root (Malladi et al. 2022). A budget in steps, tokens or epochs fixes
    D, and N is what can be trained on it in about ten minutes.
    """
    timed = budget if budget.unit == "seconds" else Budget(600.0, "seconds")
    products = _training_seconds(timed) * flops / 6
    # Of a text that is too large to be read, what matters is the part that is.
    readable = (
        4 * math.sqrt(products * TOKENS_PER_PARAMETER) if budget.unit == "seconds" else math.inf
    )
    read = min(characters, readable)
    vocab_size = 2 ** min(13, max(9, round(10 + 0.5 * math.log2(max(1, read) / 1e6))))
    n_tokens = text_tokens(characters, vocab_size)
    context = 256 if read < 100_000_000 else 1024
    if budget.unit == "seconds":
        tokens = min(math.sqrt(products * TOKENS_PER_PARAMETER), USEFUL_EPOCHS * n_tokens)
        parameters = min(products / tokens, MOST_PARAMETERS * n_tokens)
        seen = products / parameters
    else:
        seen = budget.amount * {"steps": 16 * context, "tokens": 1, "epochs": n_tokens}[budget.unit]
        parameters = min(products / seen, MOST_PARAMETERS * n_tokens)
    epochs = seen / n_tokens
    pressure = epochs * math.sqrt(parameters / n_tokens)  # to learn the text by heart
    d_model = max(128, 64 * round((64 * parameters / 12) ** (1 / 3) / 64))
    batch_size = 16 if budget.unit == "steps" else _batch_size(seen / context)
    return {
        "tokenizer": {"vocab_size": vocab_size},
        "model": {
            "n_layer": max(2, round(parameters / (12 * d_model**2))),
            "n_head": d_model // 64,
            "d_model": d_model,
            "context": context,
            "dropout": next(dropout for least, dropout in DROPOUT if pressure >= least),
        },
        "optim": learning_rates(batch_size),
        "train": {"batch_size": batch_size},
        "epochs": epochs,
    }


DROPOUT = ((28, 0.3), (12, 0.2), (4, 0.1), (0, 0.0))  # from so much pressure on; docs/log.md
