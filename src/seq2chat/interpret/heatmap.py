"""Attention maps as pictures and as numbers: one heat map, or a grid of layers by heads."""

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

from seq2chat.interpret.attention import LabeledMap
from seq2chat.interpret.figure import save_figure

# Inches: a token in a single map, the side of a picture, and a head in a grid.
CELL = 0.25
MAX_SIDE = 16.0
PANEL = 1.8
# Points.
FONT_SIZE = 9.0
MIN_FONT_SIZE = 4.0
MAX_LABEL = 24  # characters

PREFERRED_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "PingFang SC",
)
"""Fonts that are tried first for a character, before all other installed ones."""
# Fonts with boxes instead of characters, or with color pictures that matplotlib can't draw.
UNFIT = ("Last Resort", "Noto Color", "Apple Color")


def save(maps: Sequence[LabeledMap], file: Path) -> None:
    """Write the maps as unrounded numbers (.json), or as a picture with `save_figure`."""
    if file.suffix != ".json":
        save_figure(draw(maps), file, dpi=150)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"maps": values(maps)}, ensure_ascii=False) + "\n", encoding="utf-8")


def values(maps: Sequence[LabeledMap]) -> list[dict[str, Any]]:
    """Return the maps as JSON values, with unrounded `weights[head][query][key]`."""
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


def draw(maps: Sequence[LabeledMap]) -> Figure:
    """Return a picture of the maps, with queries as rows and keys as columns.

    Zero is white, and the largest weight of all maps is darkest. A single head is drawn with its
    tokens. Several heads make a grid with one row per layer and one column per head, with tokens at
    the left and below if they are large enough to read.
    """
    n_column = max(len(m.heads) for m in maps)
    single = len(maps) == n_column == 1
    width, height = _panel_size(maps, n_column, single)
    # Leave room for the longest names, the title and the scale.
    labels = {_drawable(name)[0] for m in maps for name in (*m.queries, *m.keys)}
    margin = 0.09 * max(map(_width, labels)) + 0.6
    size = (n_column * width + margin + 0.8, len(maps) * height + margin + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(maps), n_column, squeeze=False)
    scale = ScalarMappable(Normalize(0.0, max(m.weights.max().item() for m in maps)), "Blues")
    for i, m in enumerate(maps):
        # Keys are named once below panels with equal keys.
        is_named_below = i + 1 < len(maps) and list(maps[i + 1].keys) == list(m.keys)
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
            title_size = FONT_SIZE if single else 0.6 * FONT_SIZE * width / PANEL
            axes.set_title(f"{m.path} · {head}", fontsize=title_size)
            axes.tick_params(length=0)
            queries = m.queries if axes is panels[i][0] else []
            keys = [] if is_named_below else m.keys
            _label(axes.yaxis, queries, height / len(m.queries), all_or_none=not single)
            _label(axes.xaxis, keys, width / len(m.keys), all_or_none=not single)
            axes.tick_params(axis="x", rotation=90)
    figure.colorbar(scale, ax=panels, shrink=0.6 if single else 0.3, label="attention weight")
    return figure


def _panel_size(maps: Sequence[LabeledMap], n_column: int, single: bool) -> tuple[float, float]:
    """Return the width and height of a panel in inches."""
    if single:
        n_query = len(maps[0].queries)
        n_key = len(maps[0].keys)
        cell = min(CELL, MAX_SIDE / max(n_query, n_key))
        return max(1.0, cell * n_key), max(1.0, cell * n_query)
    side = min(PANEL, 2 * MAX_SIDE / max(n_column, len(maps)))
    return side, side


def _label(axis: Axis, names: Sequence[str], cell: float, all_or_none: bool) -> None:
    """Write the names along `axis`, whose cells have a size of `cell` inches.

    The font is smaller if there are many. If it would be too small, only some names are written, or
    none if `all_or_none`.
    """
    size = min(FONT_SIZE, 0.75 * 72 * cell)
    step = math.ceil(MIN_FONT_SIZE / size)
    if step > 1 and all_or_none:
        axis.set_ticks([])
        return
    drawable = [_drawable(name) for name in names[::step]]
    labels = [label for label, _ in drawable]
    fonts = dict.fromkeys([PREFERRED_FONTS[0]])
    for _, label_fonts in drawable:
        fonts |= dict.fromkeys(label_fonts)
    axis.set_ticks(
        range(0, len(names), step),
        labels,
        fontsize=max(size, MIN_FONT_SIZE),
        family=list(fonts),
        parse_math=False,
    )


def _width(label: str) -> int:
    """Return the width of a label in Latin letters. Chinese, Japanese and Korean ones are twice as
    wide."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in label)


def _drawable(name: str) -> tuple[str, list[str]]:
    """Return `name`, cut if it is long, and the fonts to draw it with.

    A character that no installed font can draw is replaced by an escape, which is never cut.
    """
    fonts = [_font_with(character) for character in name[: MAX_LABEL + 1]]
    pieces = [
        character if font is not None else character.encode("unicode_escape").decode()
        for character, font in zip(name, fonts, strict=False)
    ]
    if sum(map(len, pieces)) > MAX_LABEL:
        while sum(map(len, pieces)) > MAX_LABEL - 1:
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
    """Return the files of the installed upright fonts by name, `PREFERRED_FONTS` first."""
    upright = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    files = {font.name: font.fname for font in upright if not font.name.startswith(UNFIT)}
    names = [name for name in PREFERRED_FONTS if name in files]
    return {name: font_manager.findfont(name) for name in names} | files
