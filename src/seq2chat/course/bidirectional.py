"""Prediction of masked tokens from both sides or from the left alone (Devlin et al. 2018, section
5.1). The two trainings differ only in the attention mask."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure

from seq2chat.config import BERTConfig, check
from seq2chat.course.lesson import (
    COLORS,
    Cell,
    Lesson,
    Table,
    canvas,
    check_alike,
    plain,
    seed_note,
    spread,
)
from seq2chat.course.results import Plan
from seq2chat.course.tasks import Case, Progress, cases, fit
from seq2chat.models.bert import BERT
from seq2chat.models.folder import n_parameters
from seq2chat.nn.attention import DotProductHeads
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.text.corpus import load_corpus
from seq2chat.text.masked import MaskedLoader, masked_evaluation_batches
from seq2chat.text.shards import Shards, shards_in_memory
from seq2chat.text.split import split_texts
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.masked_lm import masked_lm

MODELS = ("both sides", "left only")
TEXT = "world:3MB"
VOCABULARY = 2000
# Short rows, because attention starts as an average over all positions. In a row of 64, the two
# most informative neighbors would have a weight of one thirty-second.
CONTEXT = 16
BATCH = 64
STEPS = 1000
SHAPE = {"context": CONTEXT, "n_layer": 2, "n_head": 4, "d_model": 128, "dropout": 0.0}


def hide_future(model: BERT) -> None:
    """Make the attention of `model` causal. Its parameters are unchanged."""
    for module in model.modules():
        if isinstance(module, DotProductHeads):
            module.causal = True


@cache
def text() -> tuple[WordPiece, Shards, Shards]:
    """Return a tokenizer, and the training and validation tokens of the built-in world."""
    corpus = load_corpus(TEXT)
    train, val = (list(split_texts(corpus, 0.05, split)) for split in ("train", "val"))
    tokenizer = WordPiece.train(train, VOCABULARY)
    return (
        tokenizer,
        shards_in_memory(train, tokenizer, "train"),
        shards_in_memory(val, tokenizer, "val"),
    )


@torch.inference_mode()
def accuracy(model: BERT, batches: Sequence[Batch]) -> tuple[float, float]:
    """Return the accuracy on the masked tokens, and their mean loss in nats."""
    right = 0
    loss = 0.0
    n = 0
    for batch in batches:
        label_mask = batch.labels != IGNORED
        hidden = model.hidden(batch.target, batch.target_mask)[label_mask]
        predictions = model.logits(hidden).argmax(-1)
        right += int((predictions == batch.labels[label_mask]).sum())
        loss += masked_lm(model, batch)[0].item()
        n += int(label_mask.sum())
    return right / n, loss / n


def unigram(batches: Sequence[Batch], train: Shards) -> float:
    """Return the accuracy of always predicting the most common token of the training text."""
    tokens = torch.from_numpy(train.read(0, train.n_tokens).astype("int64"))
    most_common = torch.bincount(tokens).argmax()
    labels = torch.cat([batch.labels[batch.labels != IGNORED] for batch in batches])
    return (labels == most_common).double().mean().item()


def plan(seeds: int, steps: int) -> Plan:
    """Return the trainings of both models, once per seed."""
    return Plan(cases(MODELS, seeds), measure, steps)


def measure(case: Case, steps: int = STEPS, progress: Progress | None = None) -> dict[str, Any]:
    """Train the case and return its record: accuracy and loss on the masked tokens of unseen text.

    The same tokens are masked for both models.
    """
    tokenizer, train, val = text()
    config = BERTConfig(tokenizer.vocab_size, **SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        model = BERT(config)
    if case.model == "left only":
        hide_future(model)
    loader = MaskedLoader(train, CONTEXT, case.seed, tokenizer)

    def batches() -> Iterator[Batch]:
        for step in range(steps):
            yield loader.batch(step * BATCH, BATCH)

    fit(model, masked_lm, batches(), steps=steps, lr=1e-3, progress=progress)
    # Full rows only, because a padded row needs another mask, which would replace the causal one.
    unseen = [
        b
        for b in masked_evaluation_batches(val, CONTEXT, BATCH, tokenizer)
        if b.target_mask is None
    ]
    share, loss = accuracy(model, unseen)
    record = {
        "topic": "bidirectional",
        **asdict(case),
        "parameters": n_parameters(config),
        "steps": steps,
    }
    record |= {"text": TEXT, "context": CONTEXT}
    return record | {"accuracy": share, "loss": loss, "unigram": unigram(unseen, train)}


def lesson(records: Sequence[dict[str, Any]]) -> Lesson:
    """Return accuracy and loss of both models, with the most common token for comparison."""
    check_alike(records, "text", "context", "steps", "parameters", "unigram")
    rows: list[list[Cell]] = []
    shares: dict[str, list[float]] = {}
    for name in MODELS:
        runs = [record for record in records if record["model"] == name]
        check(bool(runs), f"There is no result for {name}; measure both models.")
        shares[name], losses = ([run[key] for run in runs] for key in ("accuracy", "loss"))
        rows.append([name, runs[0]["parameters"], spread(shares[name]), spread(losses)])
    rows.append(["the most common token", "", f"{records[0]['unigram']:.2f}", ""])
    tables = [
        Table("masked tokens of unseen text", ["sees", "parameters", "right", "loss (nats)"], rows)
    ]
    notes = [
        (
            f"Corpus {records[0]['text']} in rows of {records[0]['context']} tokens, 15 % of them "
            f"masked, {records[0]['steps']:,} steps, {seed_note(records)}."
        ),
        _conclusion(shares),
    ]
    return Lesson("bidirectional", tables, notes, _draw(records))


def _conclusion(shares: dict[str, list[float]]) -> str:
    """Return a sentence about the better model.

    A model is better if its worst seed beats the best seed of the other, rounded as in the table.
    """
    worse, better = sorted(shares, key=lambda name: fmean(shares[name]))
    if round(min(shares[better]) - max(shares[worse]), 2) <= 0:
        return "So far neither predicts better."
    return f"So far the model that sees {better} predicts better."


def _draw(records: Sequence[dict[str, Any]]) -> Figure:
    figure = canvas(8, 3.4)
    left, right = figure.subplots(1, 2)
    for axes, key, title, y in (
        (left, "accuracy", "masked tokens guessed", "share right"),
        (right, "loss", "loss on masked tokens", "nats"),
    ):
        for place, name in enumerate(MODELS):
            values = [record[key] for record in records if record["model"] == name]
            axes.bar(place, sum(values) / len(values), color=COLORS[place], width=0.6)
            axes.plot([place] * len(values), values, "k.", ms=5)
        axes.set_xticks(range(len(MODELS)), MODELS)
        plain(axes, title, "", y)
    left.axhline(records[0]["unigram"], color="grey", linestyle=":", label="the most common token")
    left.legend(fontsize=8)
    return figure
