"""Attention maps as pictures and as numbers: one heat map, or a wall of layers by heads."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from seq2chat.inside.attention import LabelledMap
from seq2chat.inside.figure import save_figure

CELL, LARGEST = 0.25, 16.0  # inches: of a token in a single map, and of any picture's side
PANEL = 1.8  # inches: of one head in a wall
FONT, SMALLEST = 9.0, 4.0  # points
LONGEST = 24  # characters of a token that are shown

# Where the first font lacks a sign, the next one that is installed is asked.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "Arial Unicode MS")


def save(maps: Sequence[LabelledMap], file: Path) -> None:
    """Write the maps as unrounded numbers (.json), or as a picture with the endings and errors of `save_figure`."""
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
    """Return a picture of the maps: queries down, keys across, white at 0, darkest at the largest weight of all.

    One head is drawn with its tokens. Several make a wall, a row a layer and a column a head, with their tokens at the
    left and below where these can be read.
    """
    n_column = max(len(m.heads) for m in maps)
    single = len(maps) == n_column == 1
    width, height = _panel_size(maps, n_column, single)
    # Room for the longest names beside the cells, and for the title and the scale.
    margin = 0.09 * min(LONGEST, max(len(name) for m in maps for name in (*m.queries, *m.keys))) + 0.6
    size = (n_column * width + margin + 0.8, len(maps) * height + margin + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(maps), n_column, squeeze=False)
    scale = ScalarMappable(Normalize(0.0, max(m.weights.max().item() for m in maps)), "Blues")
    for i, m in enumerate(maps):
        named_below = i + 1 < len(maps) and list(maps[i + 1].keys) == list(m.keys)
        for axes in panels[i][len(m.heads) :]:
            axes.set_axis_off()
        for head, axes, weights in zip(m.heads, panels[i], m.weights, strict=False):
            axes.imshow(weights.numpy(), cmap=scale.cmap, norm=scale.norm, interpolation="none", aspect="auto")
            axes.set_title(f"{m.path} · {head}", fontsize=FONT if single else 0.6 * FONT * width / PANEL)
            axes.tick_params(length=0)
            first = axes is panels[i][0]
            _name(axes.yaxis, m.queries if first else [], height / len(m.queries), every_one=not single)
            _name(axes.xaxis, [] if named_below else m.keys, width / len(m.keys), every_one=not single)
            axes.tick_params(axis="x", rotation=90)
    figure.colorbar(scale, ax=panels, shrink=0.6 if single else 0.3, label="attention weight")
    return figure


def _panel_size(maps: Sequence[LabelledMap], n_column: int, single: bool) -> tuple[float, float]:
    """Return width and height of a panel in inches."""
    if single:
        n_query, n_key = len(maps[0].queries), len(maps[0].keys)
        cell = min(CELL, LARGEST / max(n_query, n_key))
        return max(1.0, cell * n_key), max(1.0, cell * n_query)
    side = min(PANEL, 2 * LARGEST / max(n_column, len(maps)))
    return side, side


def _name(axis: Axis, names: Sequence[str], cell: float, every_one: bool) -> None:
    """Write the names along `axis`, whose cells are so many inches: smaller where they are many, then only some, or
    none at all if `every_one` is asked for."""
    size = min(FONT, 0.75 * 72 * cell)
    step = math.ceil(SMALLEST / size)
    if step > 1 and every_one:
        axis.set_ticks([])
        return
    fonts = _installed()
    shown = [_drawable(name, fonts) for name in names[::step]]
    axis.set_ticks(range(0, len(names), step), shown, fontsize=max(size, SMALLEST), family=fonts, parse_math=False)


def _installed() -> list[str]:
    known = set(font_manager.get_font_names())
    return [font for font in FONTS if font in known]


def _drawable(name: str, fonts: Sequence[str]) -> str:
    """Return `name`, cut if it is long, with an escape for each character that none of the fonts can draw."""
    faces = [font_manager.get_font(font_manager.findfont(font)) for font in fonts]
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return "".join(
        c if any(face.get_char_index(ord(c)) for face in faces) else c.encode("unicode_escape").decode() for c in short
    )
