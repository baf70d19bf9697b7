"""`seq2chat explain`: the lecture, computed. Each topic prints its numbers and draws them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from seq2chat.config import UserError, check
from seq2chat.course import SENTENCE
from seq2chat.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    from seq2chat.course.lesson import Lesson
    from seq2chat.models.folder import Model

Record = dict[str, Any]  # one result, as benchmarks/lecture.py writes it on a line

WIDTH = 110  # of output that goes to no terminal

explain = App(
    name="explain",
    help=(
        "The lecture, computed: what each idea does, in numbers and a picture. Topics in the order "
        "of history:"
    ),
)

Matrices = Annotated[
    Path | None, Parameter(help="TOML file with your own x, w_q, w_k, w_v [and names]")
]
Causal = Annotated[bool, Parameter(negative="", help="hide from each input those after it")]
Seeds = Annotated[int | None, Parameter(help="trainings of each model (1)")]
Steps = Annotated[int | None, Parameter(help="training steps of each model (1000)")]
Results = Annotated[
    Path | None, Parameter(help="show the results in this file instead of measuring")
]
Run = Annotated[Path | None, Parameter(help="run, checkpoint or model folder of your own")]


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """Where a lesson goes."""

    out: Annotated[Path, Parameter(help="folder for the figure, or a .png, .svg or .pdf file")] = (
        Path()
    )
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object, unrounded")
    ] = False


HERE = Output()


@explain.command(sort_key=1)
def lsi(*, output: Output = HERE) -> None:
    """Persons and movies through two topics, and why W^Q and W^K learn the same."""
    from seq2chat.course.lsi import lesson

    _show(lesson(), output)


@explain.command(sort_key=4)
def attention(*, matrices: Matrices = None, causal: Causal = False, output: Output = HERE) -> None:
    """Queries, keys, values, weights and Z of four inputs, by hand."""
    from seq2chat.course.attention import LECTURE, lesson, read_example

    _show(lesson(LECTURE if matrices is None else read_example(matrices), causal), output)


@explain.command(sort_key=5)
def multihead(
    *,
    matrices: Matrices = None,
    heads: Annotated[
        int, Parameter(help="number of heads, dividing the columns of w_q and w_v")
    ] = 2,
    output: Output = HERE,
) -> None:
    """The same inputs looked at by several heads."""
    from seq2chat.course.attention import LECTURE, read_example
    from seq2chat.course.multihead import lesson

    _show(lesson(LECTURE if matrices is None else read_example(matrices), heads), output)


@explain.command(sort_key=6)
def positions(
    *,
    text: Annotated[str, Parameter(help="its words are placed")] = SENTENCE,
    d_model: Annotated[int, Parameter(help="width")] = 4,
    n: Annotated[float, Parameter(name="--n", help="base of the wavelengths")] = 10_000.0,
    run: Run = None,
    output: Output = HERE,
) -> None:
    """The sinusoidal matrix, how alike two positions are, and how large they are."""
    from seq2chat.course.positions import lesson

    _show(lesson(text, d_model, n, None if run is None else _load(run)), output)


@explain.command(sort_key=7)
def embedding(
    prompt: Annotated[str, Parameter(help="text of your own")] = SENTENCE,
    *,
    run: Run = None,
    output: Output = HERE,
) -> None:
    """One-hot → embedding → plus position: GPT-3 in shapes, a model in numbers."""
    from seq2chat.course.embedding import lesson, untrained

    model, tokenizer = untrained() if run is None else _load(run)
    _show(lesson(prompt, model, tokenizer), output)


@explain.command(sort_key=10)
def masks(
    *,
    text: Annotated[str, Parameter(help="its words are the positions")] = SENTENCE,
    output: Output = HERE,
) -> None:
    """Who sees whom in GPT and in BERT."""
    from seq2chat.course.masks import lesson

    _show(lesson(text), output)


@explain.command(sort_key=12)
def decoding(
    *,
    temperature: Annotated[
        float, Parameter(help="divides the logits; 0 takes the likeliest")
    ] = 0.7,
    top_k: Annotated[int, Parameter(help="keep the k likeliest tokens; 0 keeps all")] = 4,
    seed: Annotated[int, Parameter(help="the same seed draws the same token")] = 0,
    run: Run = None,
    prompt: Annotated[
        str | None,
        Parameter(help=f"with --run: the token after this text [{SENTENCE}]", show_default=False),
    ] = None,
    output: Output = HERE,
) -> None:
    """From logits to a token: temperature, top-k and the draw."""
    from seq2chat.course.decoding import LOGITS, WORDS, after, lesson

    check(run is not None or prompt is None, "--prompt is for a model; give one with --run.")
    names, logits = (
        (WORDS, LOGITS)
        if run is None
        else after(SENTENCE if prompt is None else prompt, *_load(run))
    )
    _show(lesson(names, logits, temperature, top_k, seed), output)


@explain.command(sort_key=13)
def gpt3(*, output: Output = HERE) -> None:
    """Where GPT-3's 175 billion parameters and its FLOPs are."""
    from seq2chat.course.gpt3 import lesson

    _show(lesson(), output)


@explain.command(sort_key=8)
def residual(
    *,
    depths: Annotated[
        tuple[int, ...], Parameter(help="numbers of layers", consume_multiple=True, negative="")
    ] = (
        4,
        8,
        16,
        32,
        64,
    ),
    seeds: Annotated[int, Parameter(help="fresh networks to average over")] = 3,
    output: Output = HERE,
) -> None:
    """The gradient that reaches the first layer, with and without skips."""
    from seq2chat.course.residual import lesson

    _show(lesson(depths, seeds), output)


@explain.command(sort_key=2)
def fixed_vector(
    *,
    task: Annotated[
        Literal["copy", "reverse", "captions"] | None,
        Parameter(
            help=(
                "say symbols again, or translate 1 to 4 captions (copy; of --results: copy and "
                "reverse)"
            )
        ),
    ] = None,
    d_model: Annotated[
        int | None,
        Parameter(help="width of the fixed context; the others get as many parameters (64)"),
    ] = None,
    seeds: Seeds = None,
    steps: Steps = None,
    results: Results = None,
    output: Output = HERE,
) -> None:
    """One vector for a sentence against attention, by length (trains for minutes)."""
    from seq2chat.course import captions
    from seq2chat.course import fixed_vector as symbols

    topic = captions if task == "captions" else symbols
    if results is not None:
        _refuse(d_model=d_model, seeds=seeds, steps=steps)
        name = "captions" if task == "captions" else "fixed-vector"
        shown = _from_file(results, topic.lesson, name, task)
    else:
        n_seed, n_step = _positive("seeds", seeds, 1), _positive("steps", steps, 1000)
        width = _positive("d_model", d_model, 64)
        cases = [
            symbols.Case(task or "copy", model, width, seed)
            for seed in range(n_seed)
            for model in symbols.MODELS
        ]
        shown = topic.lesson(_train(output, cases, topic.measure, n_step))
    _show(shown, output)


@explain.command(sort_key=9)
def rnn_vs_transformer(
    *, seeds: Seeds = None, steps: Steps = None, results: Results = None, output: Output = HERE
) -> None:
    """Training time by length, and recall by distance (trains for minutes)."""
    from seq2chat.course.rnn_vs_transformer import (
        LENGTHS,
        MODELS,
        lesson,
        measure_recall,
        measure_speed,
    )
    from seq2chat.course.tasks import Case

    if results is not None:
        _refuse(seeds=seeds, steps=steps)
        shown = _from_file(results, lesson, "rnn-vs-transformer")
    else:
        n_seed, n_step = _positive("seeds", seeds, 1), _positive("steps", steps, 1000)
        cases = [Case(model, seed) for seed in range(n_seed) for model in MODELS]
        speeds = [partial(measure_speed, model, length) for length in LENGTHS for model in MODELS]
        shown = lesson(_train(output, cases, measure_recall, n_step, speeds))
    _show(shown, output)


@explain.command(sort_key=11)
def bidirectional(
    *, seeds: Seeds = None, steps: Steps = None, results: Results = None, output: Output = HERE
) -> None:
    """Guessing a masked word from both sides or from the left (trains for minutes)."""
    from seq2chat.course.bidirectional import MODELS, lesson, measure
    from seq2chat.course.tasks import Case

    if results is not None:
        _refuse(seeds=seeds, steps=steps)
        shown = _from_file(results, lesson, "bidirectional")
    else:
        n_seed, n_step = _positive("seeds", seeds, 1), _positive("steps", steps, 1000)
        cases = [Case(model, seed) for seed in range(n_seed) for model in MODELS]
        shown = lesson(_train(output, cases, measure, n_step))
    _show(shown, output)


def _refuse(**options: int | None) -> None:
    """Raise UserError for options that say how to measure, given together with a file of
    results."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    check(
        not given,
        f"--results shows what was measured, so {' and '.join(given)} cannot change it; leave that "
        "out.",
    )


def _positive(name: str, given: int | None, otherwise: int) -> int:
    """Return the number given, or `otherwise` if none was. Raises UserError for one below 1."""
    check(given is None or given > 0, f"{name} is {given}; write a positive number.")
    return given or otherwise


def _from_file(
    file: Path, lesson: "Callable[[list[Record]], Lesson]", topic: str, task: str | None = None
) -> "Lesson":
    """Return the lesson of the results for `topic` in a file, of all tasks or of one."""
    check(file.is_file(), f"There is no file {file}; leave --results out to measure here.")
    lines = file.read_bytes().splitlines()
    records = [
        _record(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)
    ]
    records = [r for r in records if r.get("topic") == topic and task in (None, r.get("task"))]
    check(
        bool(records),
        f"{file} has no result for {task or topic}; leave --results out to measure here.",
    )
    try:
        return lesson(records)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{file}: a result for {topic} lacks {error}; measure it again.") from error
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file}: a result for {topic} is not as it was measured ({error}); measure it again."
        ) from error


def _record(line: bytes, place: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{place}, is no JSON object; write one result a line.")
    return record


def _train(
    output: Output,
    cases: Sequence[Any],
    train: Callable[..., Record],
    steps: int,
    others: Sequence[Callable[[], Record]] = (),
) -> list[Record]:
    """Return the records of the `others`, which are measured first, and of each case, trained for
    so many steps; a bar tells how long that still takes. Raises UserError at once if what comes of
    them cannot be drawn to `output`."""
    from seq2chat.course.lesson import figure_file

    figure_file(output.out, "")
    console = Console(stderr=True, highlight=False)
    console.print(f"{len(cases)} small trainings of {steps} steps each: some minutes on two cores.")
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        records = (
            [measure() for measure in bar.track(others, description="speed")] if others else []
        )
        whole = bar.add_task("training", total=len(cases) * steps)
        return records + [train(case, steps, lambda step, n: bar.advance(whole)) for case in cases]


def _load(run: Path) -> "tuple[Model, Tokenizer]":
    from seq2chat.training.checkpoint import load_checkpoint

    return load_checkpoint(run)


def _show(lesson: "Lesson", output: Output) -> None:
    file = lesson.save(output.out)
    if output.as_json:
        print(json.dumps(lesson.values() | {"figure": str(file)}, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for table in lesson.tables:
        console.print(Text(table.title, style="bold"))
        shown = Table(box=None, pad_edge=False)
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for row in table.text():
            shown.add_row(*map(Text, row))
        console.print(shown)
        console.print()
    for note in lesson.notes:
        console.print(Text(note))
    console.print(Text(str(file)), soft_wrap=True)
