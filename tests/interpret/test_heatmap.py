import json
import warnings
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch

from seq2chat.config import UserError
from seq2chat.interpret import heatmap
from seq2chat.interpret.attention import LabeledMap
from seq2chat.interpret.heatmap import draw, save


def random_map(n_head=1, n_query=3, n_key=4, path="decoder.1.cross_attn.heads", names=("q", "k")):
    torch.manual_seed(n_head)
    weights = torch.rand(n_head, n_query, n_key, dtype=torch.float64).softmax(-1)
    queries, keys = (
        [f"{name}{i}" for i in range(n)] for name, n in zip(names, (n_query, n_key), strict=True)
    )
    return LabeledMap(path, "cross", [f"head {i}" for i in range(n_head)], queries, keys, weights)


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>" and axes.axison]


def texts(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_one_map_is_drawn_with_its_tokens():
    m = random_map()
    (axes,) = panels(figure := draw([m]))
    (image,) = axes.images
    assert np.array_equal(image.get_array(), m.weights[0].numpy())
    assert image.get_clim() == (0, m.weights.max())
    assert texts(axes.yaxis) == list(m.queries)
    assert texts(axes.xaxis) == list(m.keys)
    assert axes.get_title() == "decoder.1.cross_attn.heads · head 0"
    assert len(figure.axes) == 2  # and its scale


def test_a_wall_is_layers_by_heads_on_one_scale():
    maps = [random_map(4, path=f"layers.{i}.self_attn.heads") for i in range(3)]
    drawn = panels(draw(maps))
    assert len(drawn) == 12
    pairs = [(m, h) for m in maps for h in range(4)]
    for axes, (m, h) in zip(drawn, pairs, strict=True):
        assert np.array_equal(axes.images[0].get_array(), m.weights[h].numpy())
        assert axes.get_title() == f"{m.path} · head {h}"
        assert axes.images[0].get_clim() == (0, max(m.weights.max() for m in maps))
    assert [texts(a.yaxis) for a in drawn[:2]] == [list(maps[0].queries), []]
    assert [texts(a.xaxis) for a in (drawn[0], drawn[8], drawn[9])] == [
        [],
        list(maps[2].keys),
        list(maps[2].keys),
    ]
    places = {(a.get_subplotspec().rowspan.start, a.get_subplotspec().colspan.start) for a in drawn}
    assert places == {(i, j) for i in range(3) for j in range(4)}


def test_long_inputs_fit_a_page_and_are_legible():
    figure = draw([random_map(1, 300, 500)])
    (axes,) = panels(figure)
    assert max(figure.get_size_inches()) < 20
    assert axes.images[0].get_array().shape == (300, 500)
    for axis, names in ((axes.xaxis, "k"), (axes.yaxis, "q")):
        ticks = axis.get_ticklocs()
        assert 20 < len(ticks) < 300
        # Those shown are at their own places.
        assert texts(axis) == [f"{names}{tick}" for tick in ticks]
        assert min(label.get_fontsize() for label in axis.get_ticklabels()) >= 4
    wall = draw([random_map(2, 300, 300), random_map(2, 300, 300)])
    assert max(wall.get_size_inches()) < 20
    assert all(not texts(axes.xaxis) for axes in panels(wall))


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures_are_written_whatever_the_tokens(ending, tmp_path):
    m = random_map(1, 3, 6)
    m = LabeledMap(
        m.path,
        m.kind,
        m.heads,
        ["$a$", r"\xc3", "_^{"],
        ["␣", "你", "😀", "\u0301", "<&>", "x" * 80],
        m.weights,
    )
    file = tmp_path / "new" / f"map.{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save([m], file)
    first = file.read_bytes()
    save([m], file)
    assert file.read_bytes() == first  # no date, no chance
    if ending == "png":
        height, width, _ = matplotlib.image.imread(file).shape
        assert min(height, width) > 200
    if ending == "svg":
        found = {text for text in ElementTree.fromstring(first).itertext() if text.strip()}
        assert {"$a$", r"\xc3", "_^{", "␣", "<&>", "x" * 23 + "…"} <= found


def test_the_pixels_of_a_picture_are_the_weights(tmp_path):
    """One cell is dark, the others are white."""
    weights = torch.zeros(1, 5, 5)
    weights[0, 3, 1] = 1.0
    m = LabeledMap(
        "layers.0.self_attn.heads", "self", ["head 0"], list("abcde"), list("abcde"), weights
    )
    (axes,) = panels(figure := draw([m]))
    figure.set_dpi(150)
    figure.canvas.draw()
    save([m], tmp_path / "map.png")
    pixels = matplotlib.image.imread(tmp_path / "map.png")
    for query in range(5):
        for key in range(5):
            x, y = axes.transData.transform((key, query))
            red = pixels[pixels.shape[0] - round(y), round(x), 0]
            assert (red < 0.2) if (query, key) == (3, 1) else (red > 0.9)


def test_numbers_are_written_unrounded(tmp_path):
    maps = [random_map(2), random_map(3, 2, 2)]
    save(maps, tmp_path / "maps.json")
    read = json.loads((tmp_path / "maps.json").read_text())["maps"]
    for m, found in zip(maps, read, strict=True):
        assert torch.equal(torch.tensor(found.pop("weights"), dtype=torch.float64), m.weights)
        assert found == {
            "path": m.path,
            "kind": m.kind,
            "heads": m.heads,
            "queries": m.queries,
            "keys": m.keys,
        }


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"end its name in \.png, \.svg or \.pdf"):
        save([random_map()], tmp_path / "map.gif")
    assert not list(tmp_path.iterdir())


def test_keys_are_named_below_each_kind_of_row():
    """In one wall encoder and decoder read different tokens."""
    maps = [
        random_map(2, path=f"{side}.0", names=(side, side))
        for side in ("encoder", "encoder", "decoder")
    ]
    below = [texts(axes.xaxis) for axes in panels(draw(maps))]
    assert below == [[], [], *[list(maps[1].keys)] * 2, *[list(maps[2].keys)] * 2]


def test_characters_without_a_font_are_escaped(tmp_path, monkeypatch):
    monkeypatch.setattr(heatmap, "_font_with", lambda c: "DejaVu Sans" if c.isascii() else None)
    m = random_map(1, 3, 3)
    names = ["今日は天気", "散歩", "🙂"]
    m = LabeledMap(m.path, m.kind, m.heads, names, names, m.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where labels leave no room for the map
        figure = draw([m])
        figure.savefig(tmp_path / "map.png")
    [axes] = panels(figure)
    assert texts(axes.xaxis) == [r"\u4eca\u65e5\u306f…", r"\u6563\u6b69", r"\U0001f642"]
    assert axes.get_window_extent().height > 40


def test_a_font_that_is_installed_draws_its_signs():
    assert heatmap._font_with("a") == "DejaVu Sans"
    assert heatmap._font_with("\U0010fffd") is None  # the last-resort font has a box for it
