"""Scaled dot-product attention (Vaswani et al. 2017, equation 1) by hand, on four inputs and three
matrices."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor

from seq2chat.config import check, read_toml
from seq2chat.course.lesson import Lesson, canvas, heat_map, matrix
from seq2chat.nn.attention import scaled_dot_product_plain
from seq2chat.nn.mask import causal_mask


@dataclass(frozen=True)
class Example:
    """Inputs, as rows of `x`, and the matrices for their queries, keys and values, for example
    q = x W^Q."""

    names: Sequence[str]
    x: Float64[Tensor, "n d"]
    w_q: Float64[Tensor, "d d_head"]
    w_k: Float64[Tensor, "d d_head"]
    w_v: Float64[Tensor, "d d_value"]

    @property
    def q(self) -> Float64[Tensor, "n d_head"]:
        return self.x @ self.w_q

    @property
    def k(self) -> Float64[Tensor, "n d_head"]:
        return self.x @ self.w_k

    @property
    def v(self) -> Float64[Tensor, "n d_value"]:
        return self.x @ self.w_v

    def attend(
        self, causal: bool = False
    ) -> tuple[Float64[Tensor, "n d_value"], Float64[Tensor, "n n"]]:
        """Return Z = softmax(q kᵀ / √d_head) v, and the weights.

        With `causal`, later inputs are hidden from each input.
        """
        q, k, v = (tensor[None, None] for tensor in (self.q, self.k, self.v))
        z, weights = scaled_dot_product_plain(q, k, v, is_causal=causal)
        return z[0, 0], weights[0, 0]


# The lecture's example, and the misprints on its slide by (row, column).
LECTURE = Example(
    ("a", "b", "c", "d"),
    x=torch.tensor([[1, 2, 3, 4], [2, 4, 1, 3], [1, 4, 3, 2], [3, 1, 2, 4]], dtype=torch.float64),
    w_q=torch.tensor([[0.5, 2, 0.5, 2], [2, 0.5, 2, 0.5]] * 2, dtype=torch.float64),
    w_k=torch.tensor(
        [[0.5, 1, 1.5, 2], [1, 1.5, 2, 0.5], [1.5, 2, 0.5, 1], [2, 0.5, 1, 1.5]],
        dtype=torch.float64,
    ),
    w_v=1 - torch.eye(4, dtype=torch.float64),
)
ERRATA = {(1, 3): 7.0, (3, 0): 9.25}


def read_example(file: Path) -> Example:
    """Return the example in a TOML file with matrices `x`, `w_q`, `w_k`, `w_v`, and optionally
    `names` for the rows of x.

    Raises UserError for a matrix that is missing or ragged, or does not fit the others.
    """
    tables = read_toml(file)
    keys = ("x", "w_q", "w_k", "w_v", "names")
    for key in tables:
        check(key in keys, f"{file} has an unknown key {key}; write {', '.join(keys)}.")
    x, w_q, w_k, w_v = (_read_matrix(tables, key, file) for key in keys[:4])
    for key, weights in (("w_q", w_q), ("w_k", w_k), ("w_v", w_v)):
        check(
            len(weights) == x.shape[1],
            f"{file}: {key} has {len(weights)} rows, but each row of x has {x.shape[1]} numbers; "
            "make them equal.",
        )
    check(
        w_q.shape[1] == w_k.shape[1],
        f"{file}: w_q has {w_q.shape[1]} columns and w_k {w_k.shape[1]}; queries and keys need the "
        "same length.",
    )
    names = tables.get("names", [f"x{i}" for i in range(1, len(x) + 1)])
    fits = (
        isinstance(names, list)
        and len(names) == len(x)
        and all(isinstance(name, str) for name in names)
    )
    check(fits, f"{file}: names is {names!r}; write one string for each of the {len(x)} rows of x.")
    return Example(names, x, w_q, w_k, w_v)


def lesson(example: Example = LECTURE, causal: bool = False) -> Lesson:
    """Return every step from the inputs to Z, and for the lecture's example its misprints."""
    z, weights = example.attend(causal)
    scores = example.q @ example.k.T
    scaled = scores / example.q.shape[1] ** 0.5
    if causal:
        scaled = scaled.masked_fill(~causal_mask(len(scaled), len(scaled)), -torch.inf)
    names = example.names
    d = example.q.shape[1]
    wide = [str(i + 1) for i in range(max(d, example.v.shape[1]))]
    columns = [str(i + 1) for i in range(example.x.shape[1])]
    digits = 1 if example is LECTURE else 3
    tables = [
        matrix("inputs x", names, columns, example.x, digits),
        matrix("W^Q", columns, wide[:d], example.w_q, digits),
        matrix("W^K", columns, wide[:d], example.w_k, digits),
        matrix("W^V", columns, wide[: example.v.shape[1]], example.w_v, digits),
        matrix("q = x W^Q", names, wide[:d], example.q, 1),
        matrix("k = x W^K", names, wide[:d], example.k, 1),
        matrix("v = x W^V", names, wide[: example.v.shape[1]], example.v, 1),
        matrix("scores q · k (a row: one query against every key)", names, names, scores, 1),
        matrix(
            f"scores / √{d}" + (", the future hidden" if causal else ""), names, names, scaled, 1
        ),
        matrix("weights = softmax of each row", names, names, weights),
        matrix("Z = weights · v", names, wide[: example.v.shape[1]], z),
    ]
    notes = [
        "Each row of weights sums to 1, so Z is an average of the values, weighted by the scores."
    ]
    if example is LECTURE and not causal:
        notes += [
            f"Erratum: Z of {names[i]}, column {j + 1}: the lecture prints {printed:.3f}, "
            f"arithmetic {z[i, j]:.3f}."
            for (i, j), printed in ERRATA.items()
        ]
    return Lesson("attention", tables, notes, _draw(example, scores, weights, z))


def _draw(example: Example, scores: Tensor, weights: Tensor, z: Tensor) -> Figure:
    figure = canvas(12, 3.4)
    names = example.names
    columns = [str(i + 1) for i in range(z.shape[1])]
    steps = (
        (scores, names, "q · k: query (row), key (column)", 1),
        (weights, names, "softmax(q · k / √d)", 3),
        (example.v, columns, "v", 1),
        (z, columns, "Z = weights · v", 3),
    )
    for axes, (values, under, title, digits) in zip(figure.subplots(1, 4), steps, strict=True):
        heat_map(axes, values, rows=names, columns=under, title=title, digits=digits)
    return figure


def _read_matrix(tables: dict[str, Any], key: str, file: Path) -> Float64[Tensor, "rows columns"]:
    rows = tables.get(key)
    values = torch.empty(0)
    with suppress(TypeError, ValueError, RuntimeError):  # not numbers, or ragged
        values = torch.tensor(rows, dtype=torch.float64)
    check(
        values.ndim == 2 and values.numel() > 0 and bool(values.isfinite().all()),
        f"{file}: {key} is {rows!r}; write a matrix such as {key} = [[1, 2], [3, 4]], its rows "
        "equally long.",
    )
    return values
