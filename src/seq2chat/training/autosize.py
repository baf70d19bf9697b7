"""Automatic sizing: from a budget to a recipe, by measuring the machine and the text."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch

from seq2chat.config import Budget, GPTConfig, ModelConfig, Recipe, check, recipe_tables
from seq2chat.device import Precision, describe_machine, pick_precision, synchronize
from seq2chat.log import Log
from seq2chat.models.folder import load_config
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import Batch
from seq2chat.text.corpus import load_corpus
from seq2chat.text.parallel import NAMED_PAIRS
from seq2chat.training.checkpoint import find_checkpoint
from seq2chat.training.devices import find_device
from seq2chat.training.language_modeling import causal_lm
from seq2chat.training.optim import make_optimizers
from seq2chat.training.processes import world_size

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), table 3
# A text that is repeated more often is better used for a larger model; docs/log.md.
USEFUL_EPOCHS = 8
MAX_PARAMETERS = 20  # per token of the text
STEPS = 1000
MIN_CHARACTERS = 1000
START_RATE = 0.3  # of the peak learning rate, for a model that was trained before
MIN_SAMPLE = 8_000_000  # characters of a text that is too large to be read completely
# Families whose size is not measured but taken from a recipe.
BORROWED = {
    "seq2seq": "multi30k-attention",
    "transformer": "multi30k-transformer",
    "bert": "bert-wikitext",
}
READY_SECONDS = 20  # of a timed run, for imports, tokenizer, shards and compiling
PROBED_ROWS = 4  # sequences in the timed training steps
PROBE_SECONDS = 0.5  # of these steps
GUESSED_SHARE = 0.1  # of the peak of matrix products, until training itself is measured


def choose_tables(
    source: str, changes: dict[str, dict[str, Any]], log: Log
) -> dict[str, dict[str, Any]]:
    """Return the tables of a recipe that fit the text `source`, this machine and the budget.

    `log` gets one line per choice. `changes` are the user's options. They override the result, and
    choices that depend on them follow them.
    """
    is_parallel = source in NAMED_PAIRS or "source" in changes.get("data", {})
    start = changes.get("train", {}).get("start", "")
    shape = load_config(find_checkpoint(Path(start))) if start else None
    preset = changes.get("model", {}).get("preset")
    family = changes.get("model", {}).get("family", "transformer" if is_parallel else "gpt")
    if shape is not None:
        family = shape.family
        check(preset is None, f"{start} has its own shape; leave model.preset {preset} out.")
    # An unknown family is refused before anything is measured.
    Recipe.from_tables({"model": {"family": family}})
    if family != "gpt":
        tables = _borrow(family, source, log)
        return tables if shape is None else _start_from(start, shape, tables, log)
    data = Recipe.from_tables({"data": changes.get("data", {})}).data
    train = Recipe.from_tables({"train": changes.get("train", {})}).train
    characters = int(load_corpus(source, data.field).n_characters * (1 - data.val_fraction))
    check(
        characters >= MIN_CHARACTERS,
        f"{source} has {characters} characters to train on; give a text of at least "
        f"{MIN_CHARACTERS:,}.",
    )
    device = find_device(train.device)
    precision = pick_precision(train.precision, device)
    n_processes = _parts_of_a_batch(changes)
    tables = fit_run(characters, Budget.parse(train.budget), changes, device, precision)
    epochs = tables.pop("epochs")
    batch_size = tables["train"]["batch_size"]
    tables["train"]["batch_size"] = -(-batch_size // n_processes) * n_processes
    if shape is not None:
        tables = _start_from(start, shape, tables, log)
    recipe = Recipe.from_tables(tables, changes)
    peak = precision.peak_flops / 1e9
    log(f"machine: {describe_machine(device)}, {peak:,.0f} GFLOP/s in matrix products")
    log(f"text: {characters:,} characters to train on → vocabulary {recipe.tokenizer.vocab_size}")
    _log_choices(recipe, preset, epochs, log)
    # Four times the expected amount, in case training is faster. More would only take time to
    # prepare.
    sample = int(max(MIN_SAMPLE, 4 * epochs * characters) / (1 - data.val_fraction))
    is_sampled = characters > 1.5 * sample and "max_characters" not in changes.get("data", {})
    tables["data"] = {"corpus": source, "max_characters": sample if is_sampled else 0}
    if is_sampled:
        log(
            f"the budget suffices for a part of the text: a sample of {sample:,} characters, spread"
            " over all of it"
        )
    return tables


def _parts_of_a_batch(changes: dict[str, dict[str, Any]]) -> int:
    """Return the number of processes that each take a part of a batch."""
    parallel = Recipe.from_tables({"parallel": changes.get("parallel", {})}).parallel
    sizes = parallel.sizes(world_size())
    return sizes["data"] * sizes["shard"]


def _log_choices(recipe: Recipe, preset: str | None, epochs: float, log: Log) -> None:
    if preset:
        log(f"model: {preset}, as requested")
    else:
        config = recipe.model
        assert isinstance(config, GPTConfig)
        log(
            f"budget {recipe.train.budget} → {config.n_layer} layers of width {config.d_model}, "
            f"context {config.context}"
        )
        log(f"the text is then read about {epochs:.1f} times → dropout {config.dropout}")
    if epochs > 4 * USEFUL_EPOCHS:
        log(
            "such a small text will be memorized: add more text, or use "
            f"{4 * USEFUL_EPOCHS / epochs:.1%} of the budget"
        )
    rates = recipe.optim
    log(
        f"steps of {recipe.train.batch_size * recipe.train.accumulation} sequences → learning rates"
        f" {rates.matrix_lr:.3g} for matrices, {rates.embedding_lr:.3g} for embeddings"
    )


def _start_from(start: str, shape: ModelConfig, tables: dict[str, Any], log: Log) -> dict[str, Any]:
    """Return `tables` with the shape of the starting model, and learning rates that keep most of
    its training."""
    kept = {key: value for key, value in tables.items() if key != "tokenizer"}
    dropout = tables["model"].get("dropout", getattr(shape, "dropout", 0.0))
    rates = {
        name: rate * START_RATE if name.endswith("_lr") else rate
        for name, rate in tables["optim"].items()
    }
    log(
        f"starting from {start}: its shape and its tokenizer, and {START_RATE} times the learning "
        "rates of a fresh model"
    )
    model = {"family": shape.family} | dataclasses.asdict(shape) | {"dropout": dropout}
    return kept | {"model": model, "optim": rates}


def _borrow(family: str, source: str, log: Log) -> dict[str, dict[str, Any]]:
    """Return the tables of the recipe measured for this family, or its defaults, with the user's
    text."""
    if family in BORROWED:
        tables = recipe_tables(BORROWED[family])
        log(f"shape, rates and budget: from the recipe {BORROWED[family]}")
    else:
        tables = Recipe.from_tables({"model": {"family": family}}).tables()
        log(f"shape, rates and budget: the defaults of a {family}")
    kept = {name: table for name, table in tables.items() if name not in ("data", "expect")}
    return kept | ({"data": {"corpus": source}} if source else {})


def fit_run(
    characters: int,
    budget: Budget,
    changes: dict[str, dict[str, Any]],
    device: torch.device,
    precision: Precision,
) -> dict[str, Any]:
    """Return the result of `size_run` for the measured training speed of the model it chooses.

    Small models reach a few percent of the peak of matrix products, and large ones half of it. So a
    shape is chosen for a guessed speed, measured, and chosen again.
    """
    tables = _follow(size_run(characters, budget, GUESSED_SHARE * precision.peak_flops), changes)
    for _ in range(2 if budget.unit == "seconds" and budget.amount > 120 else 1):
        recipe = _recipe(tables, changes)
        flops = world_size() * step_flops(recipe) / step_seconds(recipe, device, precision)
        tables = _follow(size_run(characters, budget, flops), changes)
    if budget.unit == "seconds":
        # The smallest models are slower than their FLOPs suggest, so the amount of text is measured
        # too.
        recipe = _recipe(tables, changes)
        steps_per_second = world_size() / step_seconds(recipe, device, precision)
        sequences = recipe.train.batch_size * steps_per_second * _training_seconds(budget)
        tables["train"]["batch_size"] = _batch_size(sequences)
        tables["optim"] = learning_rates(tables["train"]["batch_size"])
        n_tokens = text_tokens(characters, recipe.tokenizer.vocab_size)
        tables["epochs"] = sequences * _full_shape(recipe).context / n_tokens
    return _follow(tables, changes)


def _follow(tables: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return `tables` with the heads for a requested width, and the learning rates for a requested
    batch."""
    model = changes.get("model", {})
    train = changes.get("train", {})
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
    """Return the seconds of a timed budget that remain for training."""
    return max(0.5 * budget.amount, budget.amount - READY_SECONDS) * 0.9


def _batch_size(sequences: float) -> int:
    """Return the batch size that divides these sequences into about a thousand steps."""
    return 2 ** min(6, max(3, round(math.log2(max(1.0, sequences / STEPS)))))


def text_tokens(characters: int, vocab_size: int) -> float:
    """Return the approximate number of tokens of a text."""
    return characters / (0.9 + 0.63 * math.log2(vocab_size / 256))


def step_flops(recipe: Recipe) -> float:
    """Return the floating point operations of one training step of the recipe's model."""
    config = _full_shape(recipe)
    with torch.device("meta"):
        tokens = torch.zeros(recipe.train.batch_size, config.context, dtype=torch.int64)
        return float(GPT(config).flops(Batch(tokens, tokens)))


def step_seconds(recipe: Recipe, device: torch.device, precision: Precision) -> float:
    """Return the seconds per training step of the recipe's model: the minimum over the steps on
    random tokens that fit into half a second, and of at least two.

    The minimum of several steps is little affected by other programs that are busy for a moment. On
    a CPU, a few sequences take as long per sequence as a whole batch, so only a few are timed.
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
        ends = time.perf_counter() + PROBE_SECONDS
        while len(passes) < 3 or time.perf_counter() < ends:
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
    """Return the peak learning rates for this batch size. They grow with its square root (Malladi
    et al. 2022)."""
    scale = math.sqrt(batch_size / 16)
    return {"matrix_lr": 0.02 * scale, "embedding_lr": 0.02 * scale, "head_lr": 0.004 * scale}


def size_run(characters: int, budget: Budget, flops: float) -> dict[str, Any]:
    """Return vocabulary, shape, batch size and learning rates for `characters` of training text and
    a `budget` at `flops` per second.

    The vocabulary grows with the text, because a token must be seen often to be learned. Training N
    parameters on D tokens takes 6 N D FLOPs, and D = 20 N is the best use of them. If that would
    repeat a small text too often, more FLOPs go into parameters, as far as dropout can regularize
    them. The width is 64 times the depth. The batch size leaves about a thousand steps. A budget in
    steps, tokens or epochs fixes D, and N is then chosen for about ten minutes of training.
    """
    timed = budget if budget.unit == "seconds" else Budget(600.0, "seconds")
    products = _training_seconds(timed) * flops / 6
    # For a text that is too large for the budget, only the readable part matters.
    readable = characters
    if budget.unit == "seconds":
        readable = min(characters, 4 * math.sqrt(products * TOKENS_PER_PARAMETER))
    vocab_size = 2 ** min(13, max(9, round(10 + 0.5 * math.log2(max(1, readable) / 1e6))))
    n_tokens = text_tokens(characters, vocab_size)
    context = 256 if readable < 100_000_000 else 1024
    if budget.unit == "seconds":
        tokens = min(math.sqrt(products * TOKENS_PER_PARAMETER), USEFUL_EPOCHS * n_tokens)
        parameters = min(products / tokens, MAX_PARAMETERS * n_tokens)
        seen = products / parameters
    else:
        seen = budget.amount * {"steps": 16 * context, "tokens": 1, "epochs": n_tokens}[budget.unit]
        parameters = min(products / seen, MAX_PARAMETERS * n_tokens)
    epochs = seen / n_tokens
    pressure = epochs * math.sqrt(parameters / n_tokens)  # to memorize the text
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


DROPOUT = ((28, 0.3), (12, 0.2), (4, 0.1), (0, 0.0))  # by minimum pressure; docs/log.md
