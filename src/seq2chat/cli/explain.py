"""`seq2chat explain`: the course, computed. Each topic prints its numbers and draws a figure."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from seq2chat.config import check
from seq2chat.course import SENTENCE

if TYPE_CHECKING:
    from seq2chat.course.lesson import Lesson
    from seq2chat.course.results import Plan, Record

WIDTH = 110  # columns of output that goes to no terminal

explain = App(
    name="explain",
    help="Explain each idea of the course with numbers and a figure, in the order of history.",
)

Matrices = Annotated[
    Path | None,
    Parameter(help="TOML file with x, w_q, w_k, w_v and optionally names [default: the lecture's]"),
]
Causal = Annotated[bool, Parameter(negative="", help="hide the later inputs from each input")]
Seeds = Annotated[int | None, Parameter(help="trainings per model [default: 1]")]
Steps = Annotated[int | None, Parameter(help="steps per training [default: 1000]")]
Results = Annotated[
    Path | None, Parameter(help="show the results in this file instead of measuring")
]
Run = Annotated[Path | None, Parameter(help="run, checkpoint or model folder to use")]


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """The destination of a lesson."""

    out: Annotated[Path, Parameter(help="folder for the figure, or a .png, .svg or .pdf file")] = (
        Path()
    )
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print one JSON object, unrounded")
    ] = False


HERE = Output()


@explain.command(sort_key=1)
def lsi(*, output: Output = HERE) -> None:
    """People and movies through two topics, and why W^Q and W^K learn the same."""
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
    """The attention of several heads to the same inputs."""
    from seq2chat.course.attention import LECTURE, read_example
    from seq2chat.course.multihead import lesson

    _show(lesson(LECTURE if matrices is None else read_example(matrices), heads), output)


@explain.command(sort_key=6)
def positions(
    *,
    text: Annotated[str, Parameter(help="text whose word positions are encoded")] = SENTENCE,
    d_model: Annotated[int, Parameter(help="width")] = 4,
    n: Annotated[float, Parameter(name="--n", help="base of the wavelengths")] = 10_000.0,
    run: Run = None,
    output: Output = HERE,
) -> None:
    """The sinusoidal matrix, the similarity of two positions, and their size."""
    from seq2chat.course.positions import lesson
    from seq2chat.training.checkpoint import load_checkpoint

    _show(lesson(text, d_model, n, None if run is None else load_checkpoint(run)), output)


@explain.command(sort_key=7)
def embedding(
    prompt: Annotated[str, Parameter(help="text to embed")] = SENTENCE,
    *,
    run: Run = None,
    output: Output = HERE,
) -> None:
    """One-hot → embedding → plus position: the shapes of GPT-3, the numbers of a model."""
    from seq2chat.course.embedding import lesson, untrained
    from seq2chat.training.checkpoint import load_checkpoint

    model, tokenizer = untrained() if run is None else load_checkpoint(run)
    _show(lesson(prompt, model, tokenizer), output)


@explain.command(sort_key=10)
def masks(
    *,
    text: Annotated[str, Parameter(help="text whose words are the positions")] = SENTENCE,
    output: Output = HERE,
) -> None:
    """The positions that attend to each other in GPT and in BERT."""
    from seq2chat.course.masks import lesson

    _show(lesson(text), output)


@explain.command(sort_key=12)
def decoding(
    *,
    temperature: Annotated[float, Parameter(help="divides the logits; 0 is greedy")] = 0.7,
    top_k: Annotated[int, Parameter(help="keep the k most probable tokens; 0 keeps all")] = 4,
    seed: Annotated[int, Parameter(help="the same seed draws the same token")] = 0,
    run: Run = None,
    prompt: Annotated[
        str | None,
        Parameter(help=f"with --run: text before the token [default: {SENTENCE}]"),
    ] = None,
    output: Output = HERE,
) -> None:
    """From logits to a token: temperature, top-k and the draw."""
    from seq2chat.course.decoding import LOGITS, WORDS, after, lesson
    from seq2chat.inference.load import load_gpt

    check(run is not None or prompt is None, "--prompt is for a model; give one with --run.")
    names = WORDS
    logits = LOGITS
    if run is not None:
        model, tokenizer = load_gpt(run, device="cpu")
        names, logits = after(SENTENCE if prompt is None else prompt, model, tokenizer)
    _show(lesson(names, logits, temperature, top_k, seed), output)


@explain.command(sort_key=13)
def gpt3(*, output: Output = HERE) -> None:
    """Where GPT-3's 175 billion parameters and its FLOPs are."""
    from seq2chat.course.gpt3 import lesson

    _show(lesson(), output)


@explain.command(sort_key=14)
def scale(*, output: Output = HERE) -> None:
    """GPT-3 on ten thousand GPUs, and why sharding alone cannot use them."""
    from seq2chat.course.scale import lesson

    _show(lesson(), output)


@explain.command(sort_key=8)
def residual(
    *,
    depths: Annotated[
        tuple[int, ...], Parameter(help="numbers of layers", consume_multiple=True, negative="")
    ] = (4, 8, 16, 32, 64),
    seeds: Annotated[int, Parameter(help="networks to average over")] = 3,
    output: Output = HERE,
) -> None:
    """The gradient in the first layer, with and without residual connections."""
    from seq2chat.course.residual import lesson

    _show(lesson(depths, seeds), output)


@explain.command(sort_key=2)
def fixed_vector(
    *,
    task: Annotated[
        Literal["copy", "reverse", "captions"] | None,
        Parameter(
            help=(
                "repeat symbols, or translate 1 to 4 captions [default: copy; with --results copy "
                "and reverse]"
            )
        ),
    ] = None,
    d_model: Annotated[
        int | None,
        Parameter(help="width of the fixed context; the other models match its size [default: 64]"),
    ] = None,
    seeds: Seeds = None,
    steps: Steps = None,
    results: Results = None,
    output: Output = HERE,
) -> None:
    """One vector per sentence against attention, by length (trains for minutes)."""
    from seq2chat.course import captions
    from seq2chat.course import fixed_vector as symbols
    from seq2chat.course.results import lesson_from_file

    topic = captions if task == "captions" else symbols
    if results is not None:
        _refuse(d_model=d_model, seeds=seeds, steps=steps)
        name = "captions" if task == "captions" else "fixed-vector"
        result = lesson_from_file(results, topic.lesson, name, task)
    else:
        width = 64 if d_model is None else d_model
        n_seeds = 1 if seeds is None else seeds
        n_steps = 1000 if steps is None else steps
        if task == "captions":
            plan = captions.plan(width, n_seeds, n_steps)
        else:
            plan = symbols.plan(task or "copy", width, n_seeds, n_steps)
        result = topic.lesson(_measure(output, plan))
    _show(result, output)


@explain.command(sort_key=9)
def rnn_vs_transformer(
    *, seeds: Seeds = None, steps: Steps = None, results: Results = None, output: Output = HERE
) -> None:
    """Training time by length, and recall by distance (trains for minutes)."""
    from seq2chat.course import rnn_vs_transformer as topic

    _show_trained("rnn-vs-transformer", topic, seeds, steps, results, output)


@explain.command(sort_key=11)
def bidirectional(
    *, seeds: Seeds = None, steps: Steps = None, results: Results = None, output: Output = HERE
) -> None:
    """Masked words predicted from both sides or from the left (trains for minutes)."""
    from seq2chat.course import bidirectional as topic

    _show_trained("bidirectional", topic, seeds, steps, results, output)


def _show_trained(
    name: str, topic: Any, seeds: Seeds, steps: Steps, results: Results, output: Output
) -> None:
    """Show a topic's results from a file, or measure them."""
    from seq2chat.course.results import lesson_from_file

    if results is not None:
        _refuse(seeds=seeds, steps=steps)
        _show(lesson_from_file(results, topic.lesson, name), output)
        return
    plan = topic.plan(1 if seeds is None else seeds, 1000 if steps is None else steps)
    _show(topic.lesson(_measure(output, plan)), output)


def _refuse(**options: int | None) -> None:
    """Raise UserError for options of a measurement that are given together with results."""
    names = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    check(
        not names,
        f"--results shows what was measured, so {' and '.join(names)} cannot change it; leave that "
        "out.",
    )


def _measure(output: Output, plan: "Plan") -> "list[Record]":
    """Return the records of the plan, with a progress bar.

    Raises UserError at once if the figure can't be drawn to `output`.
    """
    from seq2chat.course.lesson import figure_file

    figure_file(output.out, "")
    console = Console(stderr=True, highlight=False)
    console.print(
        f"{len(plan.cases)} small trainings of {plan.steps} steps each: some minutes on two cores."
    )
    with Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        timing = bar.add_task("speed", total=len(plan.timings), visible=bool(plan.timings))
        training = bar.add_task("training", total=len(plan.cases) * plan.steps)
        return plan.run(lambda: bar.advance(timing), lambda: bar.advance(training))


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
        grid = Table(box=None, pad_edge=False)
        for index, column in enumerate(table.columns):
            grid.add_column(column, justify="left" if index == 0 else "right")
        for row in table.text():
            grid.add_row(*map(Text, row))
        console.print(grid)
        console.print()
    for note in lesson.notes:
        console.print(Text(note))
    console.print(Text(str(file)), soft_wrap=True)
