"""The fixed context on real text: translation of one to four joined captions of Multi30k (Elliott
et al. 2016).

A single caption has 13 words, which is too short to show the effect of Bahdanau et al. 2014 (figure
2). Training has equally many samples with each number of captions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure

from seq2chat.config import DataConfig
from seq2chat.course.fixed_vector import MODELS, Case, cases, equal_shape
from seq2chat.course.lesson import (
    COLORS,
    Lesson,
    Table,
    band,
    canvas,
    check_alike,
    plain,
    seed_note,
    spread,
)
from seq2chat.course.results import Plan
from seq2chat.course.tasks import EncoderDecoder, Progress, fit, make
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.translate import bleu
from seq2chat.models.folder import n_parameters
from seq2chat.text.batch import Batch
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.parallel import load_parallel, pair_batch
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.translation import translation

MOST = 4
VOCABULARY = 2000
LONGEST = 256
BATCH = 32
UNSEEN = 100

Side = list[list[int]]


@cache
def text() -> tuple[TextTokenizer, tuple[Side, Side], tuple[Side, Side]]:
    """Return a joint tokenizer, and the tokens of each English and German caption for training and
    for validation.

    Raises UserError if Multi30k can't be completions or downloaded.
    """
    corpus = load_parallel(DataConfig(corpus="multi30k-en-de"))
    tokenizer = ByteBPE.train(corpus.texts(), VOCABULARY)

    def encode(lines: Sequence[tuple[str, str]]) -> tuple[Side, Side]:
        # With a space in front, joined captions stay separate words.
        english, german = (
            [tokenizer.encode(f" {text}") for text in side] for side in zip(*lines, strict=True)
        )
        return english, german

    return tokenizer, encode(corpus.train), encode(corpus.val)


def joined(
    sides: tuple[Side, Side], rows: Sequence[Sequence[int]], tokenizer: TextTokenizer
) -> Batch:
    """Return a batch where each row joins the captions with the numbers in one row of `rows`."""
    sources, targets = (
        [[token for i in row for token in side[i]] for row in rows] for side in sides
    )
    assert tokenizer.eos_id is not None
    assert tokenizer.pad_id is not None
    return pair_batch(sources, targets, tokenizer.eos_id, tokenizer.pad_id)


def plan(d_model: int, seeds: int, steps: int) -> Plan:
    """Return the trainings of all `MODELS` on captions, once per seed."""
    return Plan(cases("captions", d_model, seeds), measure, steps)


def measure(case: Case, steps: int, progress: Progress | None = None) -> dict[str, Any]:
    """Train the case and return its record: loss per token and BLEU by number of captions.

    The task of the case is ignored.
    """
    tokenizer, train, val = text()
    config = equal_shape(case.model, case.d_model, tokenizer.vocab_size, LONGEST)
    model = make(config, case.seed)
    generator = torch.Generator().manual_seed(1000 + case.seed)

    def batches() -> Iterator[Batch]:
        while True:
            numbers = torch.randint(1, MOST + 1, (BATCH,), generator=generator).tolist()
            rows = [
                torch.randint(len(train[0]), (k,), generator=generator).tolist() for k in numbers
            ]
            yield joined(train, rows, tokenizer)

    fit(model, translation, batches(), steps=steps, lr=2e-3, progress=progress)
    # Adjacent captions of the file are joined, with as many rows for each number of captions.
    unseen = [
        joined(val, [range(k * i, k * i + k) for i in range(UNSEEN)], tokenizer)
        for k in range(1, MOST + 1)
    ]
    scores = [score(model, batch, tokenizer) for batch in unseen]
    record = {
        "topic": "captions",
        **asdict(case),
        "parameters": n_parameters(config),
        "steps": steps,
    }
    losses, bleus = zip(*scores, strict=True)
    return record | {"captions": list(range(1, MOST + 1)), "loss": losses, "bleu": bleus}


@torch.inference_mode()
def score(model: EncoderDecoder, batch: Batch, tokenizer: TextTokenizer) -> tuple[float, float]:
    """Return the mean loss of the true tokens in nats, and the BLEU of greedy translations."""
    assert batch.source is not None
    assert batch.source_mask is not None
    loss, n_tokens = translation(model, batch)
    end = int(batch.target[0, 0])
    sources = [
        row[mask].tolist() for row, mask in zip(batch.source, batch.source_mask, strict=True)
    ]
    greedy = SamplingConfig(max_tokens=LONGEST // 2, temperature=0.0)
    completions = generate(model, [[end]] * len(sources), greedy, [end], sources=sources)

    def words(tokens: Sequence[int]) -> str:
        return tokenizer.decode(token for token in tokens if token >= 0 and token != end).strip()

    return (loss / n_tokens).item(), bleu(
        [words(c.tokens) for [c] in completions], [words(t) for t in batch.labels.tolist()]
    ).score


def lesson(records: Sequence[dict[str, Any]]) -> Lesson:
    """Return loss and BLEU by number of captions: the mean over the seeds and the range."""
    check_alike(records, "captions", "steps", "d_model")
    columns = [f"{k} caption{'s' if k > 1 else ''}" for k in records[0]["captions"]]
    by_model = {name: [record for record in records if record["model"] == name] for name in MODELS}
    by_model = {name: runs for name, runs in by_model.items() if runs}
    tables = [
        Table(
            title,
            ["", "parameters", *columns],
            [
                [
                    name,
                    runs[0]["parameters"],
                    *(spread(c, digits) for c in zip(*(run[key] for run in runs), strict=True)),
                ]
                for name, runs in by_model.items()
            ],
        )
        for key, title, digits in (
            ("loss", "loss in nats per token, given the true ones before it", 2),
            ("bleu", "BLEU, greedy", 1),
        )
    ]
    notes = [
        (
            f"Multi30k, English to German, {records[0]['steps']:,} steps, {seed_note(records)}. "
            "The training is short, so compare the models and not the absolute values."
        ),
    ]
    return Lesson("captions", tables, notes, _draw(by_model))


def _draw(by_model: dict[str, list[dict[str, Any]]]) -> Figure:
    figure = canvas(11, 3.8)
    left, right = figure.subplots(1, 2)
    for axes, key, title, y in (
        (left, "loss", "loss of the true translation", "nats per token"),
        (right, "bleu", "greedy translation", "BLEU"),
    ):
        for name, runs in by_model.items():
            band(
                axes,
                runs[0]["captions"],
                [run[key] for run in runs],
                COLORS[MODELS.index(name)],
                name,
            )
        axes.set_xticks(range(1, MOST + 1))
        plain(axes, title, "captions", y)
        axes.legend(fontsize=8)
    return figure
