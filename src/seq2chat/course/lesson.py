"""What a topic shows: tables of numbers, sentences about them, and a figure of the same numbers."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from seq2chat.config import check
from seq2chat.interpret.figure import check_ending, save_figure

Cell = str | int | float

COLOURS = ("#1f5f99", "#c8553d", "#3a8f6a", "#8a6bb1", "#b58a1b")


@dataclass(frozen=True)
class Table:
    """Named columns of numbers and words. A row's first cell says what it is; `digits` are those
    after the point."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: int = 3

    def text(self) -> list[list[str]]:
        """Return the cells as they are printed: integers with thousands separated, tiny and huge
        floats by powers."""
        return [[_text(cell, self.digits) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Lesson:
    """One topic, ready to be printed and drawn."""

    topic: str
    tables: Sequence[Table]
    notes: Sequence[str]
    figure: Figure

    def values(self) -> dict[str, Any]:
        """Return everything but the figure as plain values, the numbers unrounded."""
        tables = [
            {"title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]}
            for t in self.tables
        ]
        return {"topic": self.topic, "tables": tables, "notes": list(self.notes)}

    def save(self, out: Path) -> Path:
        """Write the figure to `figure_file(out, topic)`; return the file. Raises UserError as that
        does."""
        file = figure_file(out, self.topic)
        save_figure(self.figure, file, dpi=120)
        return file


def figure_file(out: Path, topic: str) -> Path:
    """Return the file `out`, or where that is a folder `explain-TOPIC.png` in it.

    Raises UserError when the name ends in something that is no picture.
    """
    file = out if out.suffix and not out.is_dir() else out / f"explain-{topic}.png"
    check_ending(file)
    return file


def matrix(
    title: str, rows: Iterable[str], columns: Sequence[str], values: Tensor, digits: int = 3
) -> Table:
    """Return the table of a matrix, its rows and columns named; what is masked with -inf is shown
    so."""
    cells = [
        [name, *("-∞" if number == -math.inf else number for number in numbers)]
        for name, numbers in zip(rows, values.tolist(), strict=True)
    ]
    return Table(title, ["", *columns], cells, digits)


def canvas(width: int | float, height: int | float) -> Figure:
    """Return an empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def heat_map(
    axes: Axes,
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    digits: int | None = 2,
) -> AxesImage:
    """Draw a matrix as colours, each number written in its cell unless `digits` is None; return the
    image.

    A matrix with negative numbers is drawn white at zero, others white at their smallest.
    """
    numbers = values.detach().double().cpu()
    lowest = numbers.min().item()
    highest = numbers.max().item()
    if lowest < 0:
        colours = "RdBu_r"
        highest = max(-lowest, highest)
        lowest = -highest
        dark = numbers.abs() > 0.6 * highest
    else:
        colours = "Blues"
        lowest = lowest if lowest < highest else 0.0
        dark = numbers > lowest + 0.6 * (highest - lowest)
    image = axes.imshow(
        numbers.numpy(), cmap=colours, vmin=lowest, vmax=highest, interpolation="nearest"
    )
    axes.set_title(typeset(title), fontsize=10)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if digits is not None:
        for i, row in enumerate(numbers.tolist()):
            for j, number in enumerate(row):
                colour = "white" if dark[i, j] else "black"
                axes.text(
                    j, i, _text(number, digits), ha="center", va="center", fontsize=8, color=colour
                )
    return image


def plain(axes: Axes, title: str, x: str, y: str) -> None:
    """Give axes of curves or points their title, their labels and a quiet grid."""
    axes.set_title(typeset(title), fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def band(
    axes: Axes, x: Sequence[int], runs: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    """Draw the mean of several runs over `x`, each of one number a place, and shade from the lowest
    to the highest."""
    lowest, mean, highest = zip(
        *((min(v), sum(v) / len(v), max(v)) for v in zip(*runs, strict=True)), strict=True
    )
    axes.plot(x, mean, "o-", ms=4, color=colour, label=label)
    axes.fill_between(x, lowest, highest, color=colour, alpha=0.2)


def typeset(text: str) -> str:
    """Return `text` with matrices such as W^Q set as mathematics."""
    return re.sub(r"W\^([QKVO])", r"$W^\1$", text)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean of the values, with the lowest and the highest if there are several."""
    mean, least, most = (
        f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values))
    )
    return mean if len(values) == 1 else f"{mean} ({least} – {most})"


def check_alike(records: Sequence[dict[str, Any]], *keys: str) -> None:
    """Raise UserError unless there are records, with one value for each of `keys`, that a mean may
    be taken of."""
    check(len(records) > 0, "There is nothing to show: no case was measured.")
    for key in keys:
        found = {json.dumps(record[key]) for record in records}
        check(
            len(found) == 1,
            f"The results differ in {key} ({' and '.join(sorted(found))}); keep those of one.",
        )


def seeds_told(records: Sequence[dict[str, Any]]) -> str:
    """Return in words how many seeds the records have, and what `spread` shows of them."""
    n = len({record["seed"] for record in records})
    return "one seed" if n == 1 else f"{n} seeds: mean (lowest – highest)"


def _text(cell: Cell, digits: int) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if cell != 0 and (abs(cell) < 0.5 * 10**-digits or abs(cell) >= 1e7):
        return f"{cell:.2e}"
    rounded = f"{cell:,.{digits}f}"
    return rounded.removeprefix("-") if float(rounded.replace(",", "")) == 0 else rounded
