"""Sinusoidal positions (Vaswani et al. 2017, section 3.5): the matrix, the similarity of positions,
and their lengths."""

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor, nn

from seq2chat.config import check
from seq2chat.course import SENTENCE
from seq2chat.course.lesson import (
    COLORS,
    Cell,
    Lesson,
    Table,
    canvas,
    heat_map,
    matrix,
    plain,
)
from seq2chat.interpret.attention import labels
from seq2chat.interpret.reading import input_ids
from seq2chat.models.folder import Model
from seq2chat.nn.position import sinusoids
from seq2chat.text.tokenizers import Tokenizer

LECTURE_CASE = (4, 100.0)  # d_model and n of the lecture's example


def encoding(
    length: int, d_model: int, n: float = 10_000.0
) -> Float64[Tensor, "{length} {d_model}"]:
    """Return the positional encoding PE of the first `length` positions."""
    return sinusoids(torch.arange(length), d_model, torch.float64, n)


def similarities(
    table: Float64[Tensor, "n d"],
) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, "n n"]]:
    """Return the dot product and the cosine of each pair of positions."""
    unit = table / table.norm(dim=-1, keepdim=True)
    return table @ table.T, unit @ unit.T


def magnitudes(d_model: int, context: int = 512, seed: int = 0) -> list[list[Cell]]:
    """Return the mean lengths of the vectors that are added at the input of a Transformer.

    These are positions, and token embeddings drawn from normal(1/√d_model) before and after the
    multiplication by √d_model (section 3.4).
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1000, d_model, generator=generator, dtype=torch.float64) * d_model**-0.5
    return [
        [
            f"positions, all of length √{d_model / 2:g}",
            encoding(context, d_model).norm(dim=-1).mean().item(),
        ],
        ["token embeddings", tokens.norm(dim=-1).mean().item()],
        [f"token embeddings × √{d_model}", (tokens * d_model**0.5).norm(dim=-1).mean().item()],
    ]


def own_magnitudes(model: Model) -> list[list[Cell]]:
    """Return the mean lengths of a model's token embeddings and learned positions."""
    rows: list[list[Cell]] = []
    for name, embedding in model.named_modules():
        if isinstance(embedding, nn.Embedding):
            rows.append([name, embedding.weight.detach().double().norm(dim=-1).mean().item()])
    return rows


def lesson(
    text: str = SENTENCE,
    d_model: int = 4,
    n: float = 10_000.0,
    run: tuple[Model, Tokenizer] | None = None,
) -> Lesson:
    """Return the positions of the words of `text` at width `d_model` and base `n`, the lecture's
    case (width 4, n = 100), similarities between positions, and lengths.

    With a model and its tokenizer, its tokens take the place of the words, and the lengths of its
    embeddings are added. Raises UserError for an odd width, a base of 1 or less, or an empty text.
    """
    check(
        d_model > 0 and d_model % 2 == 0,
        f"d_model is {d_model}; write a positive even number, for pairs of sine and cosine.",
    )
    check(n > 1, f"n is {n:g}; write a number above 1, for example the paper's 10000.")
    words = text.split() if run is None else labels(run[1], input_ids(*run, text))
    check(len(words) > 0, "The text is empty; write at least one word.")
    names = [f"{place} {word}" for place, word in enumerate(words)]
    table = encoding(len(words), d_model, n)
    dots, cosines = similarities(table)
    lecture_table = encoding(len(words), *LECTURE_CASE)
    n_columns = min(d_model, 8)
    more = "" if n_columns == d_model else f", first {n_columns} of {d_model} columns"
    title = f"PE at n = {n:g}, d_model = {d_model}{more}"
    places = [str(i) for i in range(len(words))]
    lecture_title = f"the lecture's case: n = {LECTURE_CASE[1]:g}, d_model = {LECTURE_CASE[0]}"
    tables = [
        matrix(title, names, columns(n_columns), table[:, :n_columns]),
        matrix(lecture_title, names, columns(4), lecture_table),
        matrix(f"dot products of positions at n = {n:g}", names, places, dots),
        matrix("cosine similarities of the same", names, places, cosines),
        Table("lengths in a model of width 512", ["", "length"], magnitudes(512), 2),
    ]
    if run is not None:
        tables.append(
            Table(
                "lengths in your model, mean of all rows", ["", "length"], own_magnitudes(run[0]), 2
            )
        )
    notes = [
        (
            "PE(pos, 2i) = sin(pos / n^(2i/d)), PE(pos, 2i+1) = cos(pos / n^(2i/d)): fast clocks on"
            " the left, slow ones on the right."
        ),
        (
            "A dot product depends only on the distance between two positions, so it is constant "
            "along a diagonal."
        ),
        "Without × √d_model the token embeddings would be drowned by the positions.",
    ]
    return Lesson("positions", tables, notes, _draw(n))


def columns(d_model: int) -> list[str]:
    """Return the names of the columns, for example "sin 0" and "cos 0"."""
    return [f"{'cos' if i % 2 else 'sin'} {i // 2}" for i in range(d_model)]


def _draw(n: float, length: int = 64, d_model: int = 128) -> Figure:
    table = encoding(length, d_model, n)
    dots, cosines = similarities(table)
    figure = canvas(12, 3.8)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    places = [str(i) if i % 8 == 0 else "" for i in range(length)]
    image = heat_map(
        left,
        table,
        rows=places,
        columns=[""] * d_model,
        title=f"PE, {length} positions × {d_model}, n = {n:g}",
        digits=None,
    )
    left.set_xlabel("dimension, fast to slow")
    left.set_ylabel("position")
    left.set_aspect("auto")
    figure.colorbar(image, ax=left, shrink=0.8)
    image = heat_map(
        middle, dots, rows=places, columns=places, title="dot product of two positions", digits=None
    )
    figure.colorbar(image, ax=middle, shrink=0.8)
    for start, color in zip((0, 16, 32), COLORS, strict=False):
        right.plot(range(length), cosines[start].tolist(), color=color, label=f"position {start}")
    plain(right, "cosine similarity with one position", "position", "cosine")
    right.legend(fontsize=8)
    return figure
