"""Multi-head attention (Vaswani et al. 2017, section 3.2.2): several attentions to the same
inputs."""

from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor

from seq2chat.config import check
from seq2chat.course.attention import LECTURE, Example
from seq2chat.course.lesson import Cell, Lesson, Table, canvas, heat_map, matrix
from seq2chat.nn.attention import scaled_dot_product_plain


def split(x: Float64[Tensor, "n width"], n_head: int) -> Float64[Tensor, "1 {n_head} n d_head"]:
    """Return the columns of `x` split between the heads, with adjacent columns together."""
    return x.unflatten(-1, (n_head, -1)).transpose(0, 1)[None]


def attend(
    example: Example, n_head: int
) -> tuple[Float64[Tensor, "{n_head} n d_head"], Float64[Tensor, "{n_head} n n"]]:
    """Return the context and the weights of each head, where each head has an equal share of the
    columns of queries, keys and values.

    Raises UserError if the columns can't be split evenly.
    """
    width = example.q.shape[1]
    for name, columns in (("w_q and w_k", width), ("w_v", example.v.shape[1])):
        check(
            n_head > 0 and columns % n_head == 0,
            f"{columns} columns of {name} cannot be split between {n_head} heads; write a number "
            f"of heads that divides {columns}.",
        )
    q, k, v = (split(x, n_head) for x in (example.q, example.k, example.v))
    context, weights = scaled_dot_product_plain(q, k, v)
    return context[0], weights[0]


def lesson(example: Example = LECTURE, n_head: int = 2) -> Lesson:
    """Return the weights and contexts of `n_head` heads, their concatenation, and the shapes in
    Vaswani et al.'s base model."""
    context, weights = attend(example, n_head)
    names = example.names
    d_head = example.q.shape[1] // n_head
    d_value = context.shape[-1]
    joined = context.transpose(0, 1).flatten(1)
    tables = []
    for head in range(n_head):
        share = [str(head * d_value + i + 1) for i in range(d_value)]
        tables += [
            matrix(
                f"head {head + 1}: weights = softmax(q · k / √{d_head})",
                names,
                names,
                weights[head],
            ),
            matrix(f"head {head + 1}: weights · v", names, share, context[head]),
        ]
    tables += [
        matrix(
            "concat(head 1, …): the input of W^O",
            names,
            [str(i + 1) for i in range(joined.shape[1])],
            joined,
        ),
        Table(
            "shapes in the base model of 2017 (d_model 512, n tokens)",
            ["", "1 head", "8 heads"],
            _shapes(512, 8),
        ),
    ]
    notes = [
        (
            "Each head has its own weights: one can attend to a neighbor while another attends to "
            "the subject of the verb."
        ),
        (
            "The heads share the width, so many heads cost as much as one: the same parameters and "
            "the same products."
        ),
    ]
    return Lesson("multihead", tables, notes, _draw(example, weights, joined))


def _shapes(d_model: int, n_head: int) -> list[list[Cell]]:
    one = (d_model, 1)
    many = (d_model // n_head, n_head)
    return [
        ["d_k per head", one[0], many[0]],
        ["W^Q, W^K, W^V per head", *(f"{d_model} × {d}" for d, _ in (one, many))],
        ["W^O", *(f"{h * d} × {d_model}" for d, h in (one, many))],
        [
            "parameters of the layer",
            *(3 * h * d_model * d + h * d * d_model for d, h in (one, many)),
        ],
        ["maps of weights", *(f"{h} of n × n" for _, h in (one, many))],
    ]


def _draw(example: Example, weights: Tensor, joined: Tensor) -> Figure:
    n_head = len(weights)
    figure = canvas(3 * (n_head + 2), 3.2)
    row = figure.subplots(1, n_head + 2)
    heat_map(
        row[0],
        example.attend()[1],
        rows=example.names,
        columns=example.names,
        title="one head of the whole width",
        digits=3,
    )
    for head, axes in enumerate(row[1:-1]):
        heat_map(
            axes,
            weights[head],
            rows=example.names,
            columns=example.names,
            title=f"head {head + 1}",
            digits=3,
        )
    columns = [str(i + 1) for i in range(joined.shape[1])]
    heat_map(
        row[-1],
        joined,
        rows=example.names,
        columns=columns,
        title="concatenated contexts",
        digits=2,
    )
    return figure
