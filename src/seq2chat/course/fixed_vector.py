"""A sentence in one vector against attention to all of its words: accuracy by length (Cho et al.
2014, section 4; Sutskever et al. 2014, section 3.3; Bahdanau et al. 2014, figure 2).

All models of a comparison have nearly the same number of parameters. The capacity of a fixed
context depends on its width and on the reading order of the source, so these are varied, too.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure

from seq2chat.config import Seq2SeqConfig, TransformerConfig, check
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
from seq2chat.course.results import Plan, check_positive
from seq2chat.course.tasks import FIRST, Progress, exact_match, fit, make, repetition
from seq2chat.models.folder import n_parameters
from seq2chat.text.batch import Batch
from seq2chat.training.translation import translation

MODELS = ("fixed", "fixed, reversed", "attention", "transformer")
TASKS = ("copy", "reverse", "captions")
SYMBOLS = 16
LONGEST = 20
BATCH = 64
STEPS = 1000
UNSEEN = 500
LENGTHS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
TABLE_LENGTHS = (4, 8, 12, 20)  # the figure shows all
RATES = {"fixed": 3e-3, "fixed, reversed": 3e-3, "attention": 3e-3, "transformer": 2e-3}


@dataclass(frozen=True)
class Case:
    """One training. `d_model` is the width of the fixed-context network that sets the number of
    parameters of all models."""

    task: str
    model: str
    d_model: int
    seed: int

    def __post_init__(self) -> None:
        check(self.task in TASKS, f"The task is {self.task!r}; write one of {', '.join(TASKS)}.")
        check(
            self.model in MODELS, f"The model is {self.model!r}; write one of {', '.join(MODELS)}."
        )
        check(self.d_model >= 8, f"d_model is {self.d_model}; write at least 8.")


def shape(
    model: str, d_model: int, vocab_size: int, longest: int
) -> Seq2SeqConfig | TransformerConfig:
    """Return a small configuration of one of `MODELS` at a width, without dropout."""
    if model == "transformer":
        return TransformerConfig(
            vocab_size, longest + 1, n_layer=2, n_head=4, d_model=d_model, dropout=0.0
        )
    attention = "additive" if model == "attention" else "fixed"
    reverse = model == "fixed, reversed"
    return Seq2SeqConfig(
        vocab_size,
        attention,
        d_embed=d_model // 2,
        d_model=d_model,
        bidirectional=attention == "additive",
        reverse_source=reverse,
        dropout=0.0,
    )


@cache
def equal_shape(
    model: str, d_model: int, vocab_size: int, longest: int
) -> Seq2SeqConfig | TransformerConfig:
    """Return the configuration of `model` with the number of parameters nearest to "fixed" at
    `d_model`."""
    wanted = n_parameters(shape("fixed", d_model, vocab_size, longest))
    widths = range(4, 2 * d_model + 1, 4)
    above = bisect_left(
        widths, wanted, key=lambda width: n_parameters(shape(model, width, vocab_size, longest))
    )
    shapes = [
        shape(model, width, vocab_size, longest) for width in widths[max(0, above - 1) : above + 1]
    ]
    return min(shapes, key=lambda config: abs(n_parameters(config) - wanted))


def plan(task: str, d_model: int, seeds: int, steps: int) -> Plan:
    """Return the trainings of all `MODELS` on `task`, once per seed."""
    return Plan(cases(task, d_model, seeds), measure, steps)


def cases(task: str, d_model: int, seeds: int) -> list[Case]:
    """Return the cases of all `MODELS` for seeds 0 to `seeds` - 1. Raises UserError for a number
    below 1."""
    check_positive(seeds=seeds, d_model=d_model)
    return [Case(task, model, d_model, seed) for seed in range(seeds) for model in MODELS]


def measure(case: Case, steps: int = STEPS, progress: Progress | None = None) -> dict[str, Any]:
    """Train the case on random lengths up to 20, and return its record: the share of 500 unseen
    sequences of each length that greedy decoding reproduces exactly."""
    vocab_size = FIRST + SYMBOLS
    config = equal_shape(case.model, case.d_model, vocab_size, LONGEST)
    model = make(config, case.seed)
    generator = torch.Generator().manual_seed(1000 + case.seed)

    def batches() -> Iterator[Batch]:
        while True:
            lengths = torch.randint(1, LONGEST + 1, (BATCH,), generator=generator)
            yield repetition(case.task, lengths, SYMBOLS, generator)

    fit(model, translation, batches(), steps=steps, lr=RATES[case.model], progress=progress)
    unseen = torch.Generator().manual_seed(0)
    exact = [
        exact_match(model, repetition(case.task, torch.full((UNSEEN,), n), SYMBOLS, unseen))
        for n in LENGTHS
    ]
    record = {
        "topic": "fixed-vector",
        **asdict(case),
        "parameters": n_parameters(config),
        "steps": steps,
    }
    return record | {"lengths": LENGTHS, "exact": exact}


def lesson(records: Sequence[dict[str, Any]]) -> Lesson:
    """Return the shares by length as mean and range over the seeds, with one table per task and
    width."""
    check_alike(records, "lengths", "steps")
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for record in records:
        models = groups.setdefault((record["task"], record["d_model"]), {})
        models.setdefault(record["model"], []).append(record)
    tables = []
    for (task, d_model), models in groups.items():
        lengths = [n for n in records[0]["lengths"] if n in TABLE_LENGTHS]
        rows: list[list[Cell]] = []
        for name, runs in models.items():
            by_length = dict(
                zip(
                    runs[0]["lengths"],
                    zip(*(run["exact"] for run in runs), strict=True),
                    strict=True,
                )
            )
            rows.append([name, runs[0]["parameters"], *(spread(by_length[n]) for n in lengths)])
        title = (
            f"{task}, all as large as a fixed context of width {d_model}: exactly right, by length"
        )
        tables.append(Table(title, ["", "parameters", *map(str, lengths)], rows))
    notes = [
        f"Shares of unseen sequences; {seed_note(records)}.",
        (
            "One vector has the capacity of its width, whatever the length. With attention the "
            "memory grows with the source."
        ),
        (
            "Reversing the source brings its first words closer, which helps to copy. To reverse, "
            "where they are close already, it changes little."
        ),
    ]
    return Lesson("fixed-vector", tables, notes, _draw(groups))


def _draw(groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]]) -> Figure:
    tasks = list(dict.fromkeys(t for t, _ in groups))
    widths = list(dict.fromkeys(w for _, w in groups))
    figure = canvas(5.5 * len(widths), 3.6 * len(tasks))
    grid = figure.subplots(len(tasks), len(widths), squeeze=False)
    for (task, d_model), models in groups.items():
        axes = grid[tasks.index(task)][widths.index(d_model)]
        for name, runs in models.items():
            band(
                axes,
                runs[0]["lengths"],
                [run["exact"] for run in runs],
                COLORS[MODELS.index(name)],
                name,
            )
        plain(
            axes,
            f"{task}, as large as a fixed context of width {d_model}",
            "length",
            "exactly right",
        )
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=8)
    return figure
