"""Attention maps as pictures and as numbers: one heat map, or a wall of layers by heads."""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from seq2chat.interpret.attention import LabelledMap
from seq2chat.interpret.figure import save_figure

CELL, LARGEST = 0.25, 16.0  # inches: of a token in a single map, and of any picture's side
PANEL = 1.8  # inches: of one head in a wall
FONT, SMALLEST = 9.0, 4.0  # points
LONGEST = 24  # characters of a token that are shown

FONTS_TRIED = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "PingFang SC",
)
"""Fonts that are tried first for a character; then all others that are installed."""
# They draw boxes, or pictures that matplotlib cannot.
UNFIT = ("Last Resort", "Noto Color", "Apple Color")


def save(maps: Sequence[LabelledMap], file: Path) -> None:
    """Write the maps as unrounded numbers (.json), or as a picture with the endings and errors of
    `save_figure`."""
    if file.suffix != ".json":
        save_figure(draw(maps), file, dpi=150)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"maps": values(maps)}, ensure_ascii=False) + "\n", encoding="utf-8")


def values(maps: Sequence[LabelledMap]) -> list[dict[str, Any]]:
    """Return the maps as plain values; `weights[head][query][key]` are unrounded."""
    return [
        {
            "path": m.path,
            "kind": m.kind,
            "heads": list(m.heads),
            "queries": list(m.queries),
            "keys": list(m.keys),
            "weights": m.weights.tolist(),
        }
        for m in maps
    ]


def draw(maps: Sequence[LabelledMap]) -> Figure:
    """Return a picture of the maps: queries down, keys across, white at 0, darkest at the largest
    weight of all.

    One head is drawn with its tokens. Several make a wall, a row a layer and a column a head, with
    their tokens at the left and below where these can be read.
    """
    n_column = max(len(m.heads) for m in maps)
    single = len(maps) == n_column == 1
    width, height = _panel_size(maps, n_column, single)
    # Room for the longest names beside the cells, and for the title and the scale.
    labels = {_drawable(name)[0] for m in maps for name in (*m.queries, *m.keys)}
    margin = 0.09 * max(map(_width, labels)) + 0.6
    size = (n_column * width + margin + 0.8, len(maps) * height + margin + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(maps), n_column, squeeze=False)
    scale = ScalarMappable(Normalize(0.0, max(m.weights.max().item() for m in maps)), "Blues")
    for i, m in enumerate(maps):
        named_below = i + 1 < len(maps) and list(maps[i + 1].keys) == list(m.keys)
        for axes in panels[i][len(m.heads) :]:
            axes.set_axis_off()
        for head, axes, weights in zip(m.heads, panels[i], m.weights, strict=False):
            axes.imshow(
                weights.numpy(),
                cmap=scale.cmap,
                norm=scale.norm,
                interpolation="none",
                aspect="auto",
            )
            axes.set_title(
                f"{m.path} · {head}", fontsize=FONT if single else 0.6 * FONT * width / PANEL
            )
            axes.tick_params(length=0)
            first = axes is panels[i][0]
            _name(
                axes.yaxis,
                m.queries if first else [],
                height / len(m.queries),
                every_one=not single,
            )
            _name(
                axes.xaxis, [] if named_below else m.keys, width / len(m.keys), every_one=not single
            )
            axes.tick_params(axis="x", rotation=90)
    figure.colorbar(scale, ax=panels, shrink=0.6 if single else 0.3, label="attention weight")
    return figure


def _panel_size(maps: Sequence[LabelledMap], n_column: int, single: bool) -> tuple[float, float]:
    """Return width and height of a panel in inches."""
    if single:
        n_query = len(maps[0].queries)
        n_key = len(maps[0].keys)
        cell = min(CELL, LARGEST / max(n_query, n_key))
        return max(1.0, cell * n_key), max(1.0, cell * n_query)
    side = min(PANEL, 2 * LARGEST / max(n_column, len(maps)))
    return side, side


def _name(axis: Axis, names: Sequence[str], cell: float, every_one: bool) -> None:
    """Write the names along `axis`, whose cells are so many inches: smaller where they are many,
    then only some, or none at all if `every_one` is asked for."""
    size = min(FONT, 0.75 * 72 * cell)
    step = math.ceil(SMALLEST / size)
    if step > 1 and every_one:
        axis.set_ticks([])
        return
    drawable = [_drawable(name) for name in names[::step]]
    fonts = list(
        dict.fromkeys([FONTS_TRIED[0], *(font for _, fonts in drawable for font in fonts)])
    )
    labels = [label for label, _ in drawable]
    axis.set_ticks(
        range(0, len(names), step),
        labels,
        fontsize=max(size, SMALLEST),
        family=fonts,
        parse_math=False,
    )


def _width(label: str) -> int:
    """Return the width of a label in Latin letters; those of Chinese, Japanese and Korean are twice
    as wide."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in label)


def _drawable(name: str) -> tuple[str, list[str]]:
    """Return `name`, cut if it is long, and the fonts that it is drawn with.

    A character that no installed font can draw becomes an escape, which is never cut in the middle.
    """
    fonts = [_font_with(character) for character in name[: LONGEST + 1]]
    pieces = [
        character if font is not None else character.encode("unicode_escape").decode()
        for character, font in zip(name, fonts, strict=False)
    ]
    if sum(map(len, pieces)) > LONGEST:
        while sum(map(len, pieces)) > LONGEST - 1:
            pieces.pop()
        pieces.append("…")
    return "".join(pieces), [font for font in fonts if font is not None]


@lru_cache(maxsize=10_000)
def _font_with(character: str) -> str | None:
    """Return the name of the first installed font that can draw the character."""
    for name, file in _installed().items():
        if font_manager.get_font(file).get_char_index(ord(character)):
            return name
    return None


@lru_cache(maxsize=1)
def _installed() -> dict[str, str]:
    """Return the files of the upright fonts that are installed by their names, those of
    `FONTS_TRIED` first."""
    upright = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    files = {font.name: font.fname for font in upright if not font.name.startswith(UNFIT)}
    names = [name for name in FONTS_TRIED if name in files]
    return {name: font_manager.findfont(name) for name in names} | files
