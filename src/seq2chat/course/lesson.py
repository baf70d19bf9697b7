"""The output of a topic: tables of numbers, notes about them, and a figure of the same numbers."""

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

COLORS = ("#1f5f99", "#c8553d", "#3a8f6a", "#8a6bb1", "#b58a1b")


@dataclass(frozen=True)
class Table:
    """Named columns of numbers and words.

    The first cell of a row is its name. `digits` is the number of decimal places.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: int = 3

    def text(self) -> list[list[str]]:
        """Return the printed cells. Integers have thousands separators, and tiny and huge floats
        are in scientific notation."""
        return [[_text(cell, self.digits) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Lesson:
    """One topic, ready to be printed and drawn."""

    topic: str
    tables: Sequence[Table]
    notes: Sequence[str]
    figure: Figure

    def values(self) -> dict[str, Any]:
        """Return everything except the figure as JSON values, with unrounded numbers."""
        tables = [
            {"title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]}
            for t in self.tables
        ]
        return {"topic": self.topic, "tables": tables, "notes": list(self.notes)}

    def save(self, out: Path) -> Path:
        """Write the figure to `figure_file(out, topic)` and return the file. Errors as there."""
        file = figure_file(out, self.topic)
        save_figure(self.figure, file, dpi=120)
        return file


def figure_file(out: Path, topic: str) -> Path:
    """Return the file `out`, or `explain-TOPIC.png` in it if it is a folder.

    Raises UserError for a suffix that is not a picture's.
    """
    file = out if out.suffix and not out.is_dir() else out / f"explain-{topic}.png"
    check_ending(file)
    return file


def matrix(
    title: str, rows: Iterable[str], columns: Sequence[str], values: Tensor, digits: int = 3
) -> Table:
    """Return the table of a matrix with named rows and columns, where -inf is written as -∞."""
    cells = [
        [name, *("-∞" if number == -math.inf else number for number in numbers)]
        for name, numbers in zip(rows, values.tolist(), strict=True)
    ]
    return Table(title, ["", *columns], cells, digits)


def canvas(width: int | float, height: int | float) -> Figure:
    """Return an empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def heat_map(
    axes: Axes,
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    digits: int | None = 2,
) -> AxesImage:
    """Draw a matrix as colors, with the number in each cell unless `digits` is None, and return
    the image.

    White is zero in a matrix with negative numbers, and the smallest number in others.
    """
    numbers = values.detach().double().cpu()
    lowest = numbers.min().item()
    highest = numbers.max().item()
    if lowest < 0:
        colors = "RdBu_r"
        highest = max(-lowest, highest)
        lowest = -highest
        dark = numbers.abs() > 0.6 * highest
    else:
        colors = "Blues"
        lowest = lowest if lowest < highest else 0.0
        dark = numbers > lowest + 0.6 * (highest - lowest)
    image = axes.imshow(
        numbers.numpy(), cmap=colors, vmin=lowest, vmax=highest, interpolation="nearest"
    )
    axes.set_title(typeset(title), fontsize=10)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if digits is not None:
        for i, row in enumerate(numbers.tolist()):
            for j, number in enumerate(row):
                color = "white" if dark[i, j] else "black"
                axes.text(
                    j, i, _text(number, digits), ha="center", va="center", fontsize=8, color=color
                )
    return image


def plain(axes: Axes, title: str, x: str, y: str) -> None:
    """Add title, labels and a light grid to axes of curves or points."""
    axes.set_title(typeset(title), fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def band(
    axes: Axes, x: Sequence[int], runs: Sequence[Sequence[float]], color: str, label: str
) -> None:
    """Draw the mean of several runs over `x`, with a band from the lowest to the highest run."""
    columns = list(zip(*runs, strict=True))
    mean = [sum(column) / len(column) for column in columns]
    lowest = [min(column) for column in columns]
    highest = [max(column) for column in columns]
    axes.plot(x, mean, "o-", ms=4, color=color, label=label)
    axes.fill_between(x, lowest, highest, color=color, alpha=0.2)


def typeset(text: str) -> str:
    """Return `text` with matrices such as W^Q typeset as mathematics."""
    return re.sub(r"W\^([QKVO])", r"$W^\1$", text)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean of the values, and the lowest and the highest if there are several."""
    mean, least, most = (
        f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values))
    )
    return mean if len(values) == 1 else f"{mean} ({least} – {most})"


def check_alike(records: Sequence[dict[str, Any]], *keys: str) -> None:
    """Raise UserError unless there are records, and all have the same value for each of `keys`.

    Only such records can be averaged.
    """
    check(len(records) > 0, "There is nothing to show: no case was measured.")
    for key in keys:
        values = {json.dumps(record[key]) for record in records}
        check(
            len(values) == 1,
            f"The results differ in {key} ({' and '.join(sorted(values))}); keep those of one.",
        )


def seed_note(records: Sequence[dict[str, Any]]) -> str:
    """Return the number of seeds in the records in words, with the meaning of `spread`."""
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
