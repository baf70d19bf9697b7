"""Sinusoidal positions (Vaswani et al. 2017, section 3.5): the matrix, how alike two positions are,
and how large."""

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor, nn

from seq2chat.config import check
from seq2chat.course import SENTENCE
from seq2chat.course.lesson import (
    COLOURS,
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

TEACHING = (4, 100.0)  # d_model and n of the lecture's example by hand


def encoding(
    length: int, d_model: int, n: float = 10_000.0
) -> Float64[Tensor, "{length} {d_model}"]:
    """Return PE of the first `length` positions."""
    return sinusoids(torch.arange(length), d_model, torch.float64, n)


def similarities(
    table: Float64[Tensor, "n d"],
) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, "n n"]]:
    """Return the dot product and the cosine of every two positions."""
    unit = table / table.norm(dim=-1, keepdim=True)
    return table @ table.T, unit @ unit.T


def magnitudes(d_model: int, context: int = 512, seed: int = 0) -> list[list[Cell]]:
    """Return the mean lengths of what is added at the input of a Transformer of that width:
    positions, and token embeddings drawn as normal(1/√d_model), before and after they are
    multiplied by √d_model (section 3.4)."""
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
    """Return the mean lengths of a model's own token embeddings and learned positions, if it has
    any."""
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
    """Return the positions of the words of `text` at width `d_model` and base `n`, the lecture's (4
    wide, n = 100), similarities between positions, and lengths.

    With a model and its tokenizer the positions are those of the tokens it reads, control tokens
    included, and the lengths of its own embeddings are added.

    Raises UserError for an odd width, a base of 1 or less, or an empty text.
    """
    check(
        d_model > 0 and d_model % 2 == 0,
        f"d_model is {d_model}; write a positive even number: sines and cosines.",
    )
    check(n > 1, f"n is {n:g}; write a number above 1, the paper's is 10000.")
    words = text.split() if run is None else labels(run[1], input_ids(*run, text))
    check(len(words) > 0, "The text is empty; write at least one word.")
    names = [f"{place} {word}" for place, word in enumerate(words)]
    table = encoding(len(words), d_model, n)
    dots, cosines = similarities(table)
    teaching = encoding(len(words), *TEACHING)
    shown = min(d_model, 8)
    more = "" if shown == d_model else f", first {shown} of {d_model} columns"
    tables = [
        matrix(
            f"PE at n = {n:g}, d_model = {d_model}{more}", names, columns(shown), table[:, :shown]
        ),
        matrix(
            f"the lecture's case: n = {TEACHING[1]:g}, d_model = {TEACHING[0]}",
            names,
            columns(4),
            teaching,
        ),
        matrix(
            f"dot products of positions at n = {n:g}",
            names,
            [str(i) for i in range(len(words))],
            dots,
        ),
        matrix(
            "cosine similarities of the same", names, [str(i) for i in range(len(words))], cosines
        ),
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
            "A dot product depends only on the distance of two positions: along a diagonal it is "
            "one number."
        ),
        "Without × √d_model the token embeddings would be drowned by the positions.",
    ]
    return Lesson("positions", tables, notes, _draw(n))


def columns(d_model: int) -> list[str]:
    """Return the names of the columns: which sine or cosine each is."""
    return [f"{'cos' if i % 2 else 'sin'} {i // 2}" for i in range(d_model)]


def _draw(n: float, length: int = 64, d_model: int = 128) -> Figure:
    table = encoding(length, d_model, n)
    dots, cosines = similarities(table)
    figure = canvas(12, 3.8)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    places = [str(i) if i % 8 == 0 else "" for i in range(length)]
    image = heat_map(
        left, table, places, [""] * d_model, f"PE, {length} positions × {d_model}, n = {n:g}", None
    )
    left.set_xlabel("dimension, fast to slow")
    left.set_ylabel("position")
    left.set_aspect("auto")
    figure.colorbar(image, ax=left, shrink=0.8)
    image = heat_map(middle, dots, places, places, "dot product of two positions", None)
    figure.colorbar(image, ax=middle, shrink=0.8)
    for start, colour in zip((0, 16, 32), COLOURS, strict=False):
        right.plot(range(length), cosines[start].tolist(), color=colour, label=f"position {start}")
    plain(right, "cosine similarity with one position", "position", "cosine")
    right.legend(fontsize=8)
    return figure
