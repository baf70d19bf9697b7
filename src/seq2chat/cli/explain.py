"""`seq2chat explain`: the lecture, computed. Each topic prints its numbers and draws them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from seq2chat.config import check

if TYPE_CHECKING:
    from seq2chat.inside.lecture.lesson import Lesson
    from seq2chat.models.folder import Model
    from seq2chat.text.tokenizer import Tokenizer
    from seq2chat.text.wordpiece import WordPiece

WIDTH = 110  # of output that goes to no terminal

explain = App(
    name="explain",
    help="The lecture, computed: what each idea does, in numbers and a picture. Topics in the order of history:",
)


SENTENCE = "I am a robot"

Matrices = Annotated[Path | None, Parameter(help="TOML file with your own x, w_q, w_k, w_v [and names]")]
Causal = Annotated[bool, Parameter(negative="", help="hide from each input those after it")]
Seeds = Annotated[int, Parameter(help="trainings of each model")]
Steps = Annotated[int, Parameter(help="training steps of each model")]
Results = Annotated[Path | None, Parameter(help="show the results in this file instead of measuring")]
Run = Annotated[Path | None, Parameter(help="run, checkpoint or model folder of your own")]


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """Where a lesson goes."""

    out: Annotated[Path, Parameter(help="folder for the figure, or a .png, .svg or .pdf file")] = Path()
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="print one JSON object, unrounded")] = False


HERE = Output()


@explain.command(sort_key=1)
def lsi(*, output: Output = HERE) -> None:
    """Persons and movies through two topics, and why W^Q and W^K learn the same."""
    from seq2chat.inside.lecture.lsi import lesson

    _show(lesson(), output)


@explain.command(sort_key=4)
def attention(*, matrices: Matrices = None, causal: Causal = False, output: Output = HERE) -> None:
    """Queries, keys, values, weights and Z of four inputs, by hand."""
    from seq2chat.inside.lecture.attention import LECTURE, lesson, read_example

    _show(lesson(LECTURE if matrices is None else read_example(matrices), causal), output)


@explain.command(sort_key=5)
def multihead(
    *,
    matrices: Matrices = None,
    heads: Annotated[int, Parameter(help="number of heads, dividing the columns of w_q and w_v")] = 2,
    output: Output = HERE,
) -> None:
    """The same inputs looked at by several heads."""
    from seq2chat.inside.lecture.attention import LECTURE, read_example
    from seq2chat.inside.lecture.multihead import lesson

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
    from seq2chat.inside.lecture.positions import lesson

    model = None if run is None else _load(run)[0]
    _show(lesson(text, d_model, n, model), output)


@explain.command(sort_key=7)
def embedding(
    prompt: Annotated[str, Parameter(help="text of your own")] = SENTENCE, *, run: Run = None, output: Output = HERE
) -> None:
    """One-hot → embedding → plus position: GPT-3 in shapes, a model in numbers."""
    from seq2chat.inside.lecture.embedding import lesson, untrained

    model, tokenizer = untrained() if run is None else _load(run)
    _show(lesson(prompt, model, tokenizer), output)


@explain.command(sort_key=10)
def masks(
    *, text: Annotated[str, Parameter(help="its words are the positions")] = SENTENCE, output: Output = HERE
) -> None:
    """Who sees whom in GPT and in BERT."""
    from seq2chat.inside.lecture.masks import lesson

    _show(lesson(text), output)


@explain.command(sort_key=12)
def decoding(
    *,
    temperature: Annotated[float, Parameter(help="divides the logits; 0 takes the likeliest")] = 0.7,
    top_k: Annotated[int, Parameter(help="keep the k likeliest tokens; 0 keeps all")] = 4,
    seed: Annotated[int, Parameter(help="the same seed draws the same token")] = 0,
    run: Run = None,
    prompt: Annotated[str, Parameter(help="with --run: the token after this text")] = SENTENCE,
    output: Output = HERE,
) -> None:
    """From logits to a token: temperature, top-k and the draw."""
    from seq2chat.inside.lecture.decoding import LOGITS, WORDS, after, lesson

    names, logits = (WORDS, LOGITS) if run is None else after(prompt, *_load(run))
    _show(lesson(names, logits, temperature, top_k, seed), output)


@explain.command(sort_key=13)
def gpt3(*, output: Output = HERE) -> None:
    """Where GPT-3's 175 billion parameters and its FLOPs are."""
    from seq2chat.inside.lecture.gpt3 import lesson

    _show(lesson(), output)


@explain.command(sort_key=8)
def residual(
    *,
    depths: Annotated[tuple[int, ...], Parameter(help="numbers of layers", consume_multiple=True, negative="")] = (
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
    from seq2chat.inside.lecture.residual import lesson

    _show(lesson(depths, seeds), output)


@explain.command(sort_key=2)
def fixed_vector(
    *,
    task: Annotated[
        Literal["copy", "reverse", "captions"], Parameter(help="say symbols again, or translate 1 to 4 captions")
    ] = "copy",
    d_model: Annotated[int, Parameter(help="width of the fixed context; the others get as many parameters")] = 64,
    seeds: Seeds = 1,
    steps: Steps = 1000,
    results: Results = None,
    output: Output = HERE,
) -> None:
    """One vector for a sentence against attention, by length (trains for minutes)."""
    from seq2chat.inside.lecture import captions
    from seq2chat.inside.lecture import fixed_vector as symbols

    topic = captions if task == "captions" else symbols
    records = _results(results, "captions" if task == "captions" else "fixed-vector")
    if not records:
        cases = [symbols.Case(task, model, d_model, seed) for seed in range(seeds) for model in symbols.MODELS]
        records = _measure(cases, topic.measure, steps)
    _show(topic.lesson(records), output)


@explain.command(sort_key=9)
def rnn_vs_transformer(
    *, seeds: Seeds = 1, steps: Steps = 1000, results: Results = None, output: Output = HERE
) -> None:
    """Training time by length, and recall by distance (trains for minutes)."""
    from seq2chat.inside.lecture.rnn_vs_transformer import LENGTHS, MODELS, Case, lesson, measure_recall, measure_speed

    records = _results(results, "rnn-vs-transformer")
    if not records:
        records = [measure_speed(model, length) for length in LENGTHS for model in MODELS]
        records += _measure([Case(model, seed) for seed in range(seeds) for model in MODELS], measure_recall, steps)
    _show(lesson(records), output)


@explain.command(sort_key=11)
def bidirectional(*, seeds: Seeds = 1, steps: Steps = 1000, results: Results = None, output: Output = HERE) -> None:
    """Guessing a masked word from both sides or from the left (trains for minutes)."""
    from seq2chat.inside.lecture.bidirectional import MODELS, Case, lesson, measure

    records = _results(results, "bidirectional")
    if not records:
        records = _measure([Case(model, seed) for seed in range(seeds) for model in MODELS], measure, steps)
    _show(lesson(records), output)


def _results(file: Path | None, topic: str) -> list[dict[str, Any]]:
    """Return the records of `topic` in a file of results; none without a file."""
    if file is None:
        return []
    check(file.is_file(), f"There is no file {file}; leave --results out to measure here.")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if record.get("topic") == topic]
    check(bool(records), f"{file} has no result for {topic}; leave --results out to measure here.")
    return records


def _measure(cases: list[Any], measure: Callable[..., dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Return the record of each case, with a bar that tells how long the trainings still take."""
    check(len(cases) > 0, "seeds is 0; write a positive number.")
    check(steps > 0, f"steps is {steps}; write a positive number.")
    console = Console(stderr=True, highlight=False)
    console.print(f"{len(cases)} small trainings of {steps} steps each: some minutes on two cores.")
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        whole = bar.add_task("training", total=len(cases) * steps)
        return [measure(case, steps, lambda step, n: bar.advance(whole)) for case in cases]


def _load(run: Path) -> "tuple[Model, Tokenizer | WordPiece]":
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
