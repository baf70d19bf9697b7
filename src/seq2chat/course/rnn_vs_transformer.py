"""The advantages of the Transformer over recurrence (Vaswani et al. 2017, table 1): parallel
positions, and short paths between them.

An RNN reads a sequence one position after the other, and information passes through every state in
between. Attention compares all pairs of positions, and any two are one step apart.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from matplotlib.figure import Figure
from torch import Tensor

from seq2chat.config import check
from seq2chat.course.fixed_vector import equal_shape
from seq2chat.course.lesson import (
    COLORS,
    Cell,
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
from seq2chat.course.tasks import (
    EOS,
    FIRST,
    PAD,
    Case,
    Progress,
    cases,
    exact_match,
    fit,
    make,
    repetition,
)
from seq2chat.models.folder import n_parameters
from seq2chat.text.batch import Batch
from seq2chat.text.parallel import pair_batch
from seq2chat.training.translation import translation

MODELS = ("fixed", "transformer")
NAMES = {"fixed": "RNN", "transformer": "Transformer"}
LENGTHS = (16, 32, 64, 128, 256, 512)
TOKENS = 4096
SPEED_WIDTH = 256

KEYS = 2
VALUES = 4
NOISE = 4
FIRST_KEY = FIRST
FIRST_VALUE = FIRST + KEYS
FIRST_PAIR = FIRST + KEYS + VALUES
FIRST_NOISE = FIRST_PAIR + KEYS * VALUES
VOCABULARY = FIRST_NOISE + NOISE
LONGEST = 64
RECALL_WIDTH = 64
BATCH = 32
STEPS = 1000
UNSEEN = 500
DISTANCES = (0, 4, 9, 19, 29, 39, 49, 61)
TABLE_DISTANCES = (0, 9, 39, 61)  # the figure shows all


def plan(seeds: int, steps: int) -> Plan:
    """Return the timings of both models at each length, and their trainings, once per seed."""
    timings = [partial(measure_speed, model, length) for length in LENGTHS for model in MODELS]
    return Plan(cases(MODELS, seeds), measure_recall, steps, timings)


def measure_speed(
    model_name: str, length: int, repeats: int = 5, width: int = SPEED_WIDTH
) -> dict[str, Any]:
    """Return the record of the time of a forward and backward pass per target token.

    The task is to copy sequences of `length`, about 4096 tokens per batch. The time is the median
    of `repeats` passes after a warm-up pass.
    """
    config = equal_shape(model_name, width, FIRST + 64, max(LENGTHS))
    model = make(config, 0)
    batch = max(1, TOKENS // length)
    generator = torch.Generator().manual_seed(0)
    task = repetition("copy", torch.full((batch,), length), 64, generator)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        translation(model, task)[0].backward()
        seconds.append(time.perf_counter() - start)
    per_token = 1e6 * statistics.median(seconds[1:]) / (batch * length)
    record = {"topic": "rnn-vs-transformer", "kind": "speed", "model": model_name, "length": length}
    return record | {"microseconds": per_token, "parameters": n_parameters(config)}


def recall(distances: Int64[Tensor, " batch"], generator: torch.Generator) -> Batch:
    """Return sequences of noise with a symbol for each pair of key and value, and a key at the end.

    The label is the value of that key. There are `distances` symbols between its pair and the end.
    """
    n = len(distances)
    source = torch.randint(FIRST_NOISE, VOCABULARY, (n, LONGEST), generator=generator)
    query = torch.randint(KEYS, (n,), generator=generator)
    values = torch.randint(VALUES, (n, KEYS), generator=generator)
    for row, distance in enumerate(distances.tolist()):
        place = LONGEST - 2 - distance
        others = torch.randperm(LONGEST - 2, generator=generator)[: KEYS - 1]
        others += others >= place
        other_keys = torch.tensor([key for key in range(KEYS) if key != query[row]])
        keys = torch.cat([query[row, None], other_keys])
        source[row, [place, *others]] = FIRST_PAIR + keys * VALUES + values[row, keys]
    source[:, -1] = FIRST_KEY + query
    answer = FIRST_VALUE + values.gather(1, query[:, None])
    return pair_batch(source.tolist(), answer.tolist(), EOS, PAD)


def measure_recall(
    case: Case, steps: int = STEPS, progress: Progress | None = None
) -> dict[str, Any]:
    """Train the case on all distances and return its record: the accuracy on 500 unseen sequences
    of each distance."""
    config = equal_shape(case.model, RECALL_WIDTH, VOCABULARY, LONGEST)
    model = make(config, case.seed)
    generator = torch.Generator().manual_seed(1000 + case.seed)

    def batches() -> Iterator[Batch]:
        while True:
            yield recall(torch.randint(LONGEST - 1, (BATCH,), generator=generator), generator)

    fit(model, translation, batches(), steps=steps, lr=3e-3, progress=progress)
    unseen = torch.Generator().manual_seed(0)
    right = [exact_match(model, recall(torch.full((UNSEEN,), n), unseen)) for n in DISTANCES]
    record = {
        "topic": "rnn-vs-transformer",
        "kind": "recall",
        "parameters": n_parameters(config),
        "steps": steps,
    }
    return record | asdict(case) | {"distances": DISTANCES, "right": right}


def lesson(records: Sequence[dict[str, Any]]) -> Lesson:
    """Return time by length and recall by distance from the records of `measure_speed` and
    `measure_recall`."""
    speed = [r for r in records if r["kind"] == "speed"]
    runs = [r for r in records if r["kind"] == "recall"]
    by_model = {name: {r["length"]: r for r in speed if r["model"] == name} for name in MODELS}
    lengths = sorted(n for n in by_model["fixed"] if n in by_model["transformer"])
    whole = bool(lengths) and {r["model"] for r in runs} == set(MODELS)
    check(whole, "There is nothing to show: speed and recall were not measured of both models.")
    check_alike(runs, "distances", "steps")
    rows: list[list[Cell]] = [
        [
            NAMES[name],
            by_model[name][lengths[0]]["parameters"],
            *(by_model[name][n]["microseconds"] for n in lengths),
        ]
        for name in MODELS
    ]
    ratio = [
        by_model["fixed"][n]["microseconds"] / by_model["transformer"][n]["microseconds"]
        for n in lengths
    ]
    answers: list[list[Cell]] = []
    distances = runs[0]["distances"]
    indices = [i for i, n in enumerate(distances) if n in TABLE_DISTANCES]
    for name in MODELS:
        mine = [r for r in runs if r["model"] == name]
        columns = [[r["right"][i] for r in mine] for i in indices]
        answers.append([NAMES[name], mine[0]["parameters"], *map(spread, columns)])
    tables = [
        Table(
            "training, microseconds per token, by length",
            ["", "parameters", *map(str, lengths)],
            [*rows, ["RNN / Transformer", "", *ratio]],
            1,
        ),
        Table(
            "the value of a key, by the symbols after it: share right",
            ["", "parameters", *(str(distances[i]) for i in indices)],
            answers,
        ),
    ]
    notes = [
        (
            "An RNN takes one step per position, one after the other. Attention compares all pairs "
            "at once, which costs n² products but runs in parallel."
        ),
        (
            f"Recall: {seed_note(runs)}. Guessing among the values is right in {1 / VALUES:.3f} of"
            " the cases."
        ),
    ]
    return Lesson("rnn-vs-transformer", tables, notes, _draw(by_model, lengths, runs))


def _draw(
    by_model: dict[str, dict[int, dict[str, Any]]], lengths: list[int], runs: list[dict[str, Any]]
) -> Figure:
    figure = canvas(11, 3.8)
    left, right = figure.subplots(1, 2)
    for name, color in zip(MODELS, COLORS, strict=False):
        left.plot(
            lengths,
            [by_model[name][n]["microseconds"] for n in lengths],
            "o-",
            ms=4,
            color=color,
            label=NAMES[name],
        )
        mine = [r for r in runs if r["model"] == name]
        band(right, mine[0]["distances"], [r["right"] for r in mine], color, NAMES[name])
    left.set_xscale("log", base=2)
    left.set_xticks(lengths, [str(n) for n in lengths])
    left.set_ylim(bottom=0)
    right.axhline(1 / VALUES, color="grey", linestyle=":", label="guessing")
    right.set_ylim(0, 1.03)
    plain(left, "training: time per token", "length", "microseconds")
    plain(right, "recall of a key's value", "symbols after it", "right")
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure
