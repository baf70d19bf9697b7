"""The panel LSI: its decomposition is that of `seq2chat explain lsi`, also of other numbers."""

import json
import shutil

import pytest
import torch
from serving.web.chat_page import needs_browser
from serving.web.test_modules import run  # noqa: F401  a fixture

from seq2chat.course.lsi import MOVIES, P8, P9, RATINGS, topics

SCRIPT = """
import { svd } from "./svd.js";
console.log(JSON.stringify(MATRICES.map(svd)));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_decomposition_is_torchs(run):  # noqa: F811
    rng = torch.Generator().manual_seed(0)
    shapes = ((4, 4), (7, 3), (3, 7), (1, 5), (9, 12))
    matrices = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    matrices += [RATINGS, matrices[1] @ matrices[2], torch.zeros(3, 2, dtype=torch.float64)]
    script = SCRIPT.replace("MATRICES", json.dumps([matrix.tolist() for matrix in matrices]))
    for matrix, found in zip(matrices, run(script), strict=True):
        u, s, v = (torch.tensor(found[name], dtype=torch.float64) for name in "usv")
        expected_u, expected_s, expected_v = topics(matrix, min(matrix.shape))
        torch.testing.assert_close(s, expected_s, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(u @ s.diag() @ v.T, matrix, atol=1e-9, rtol=1e-9)
        # Topics of strength 0 can have any direction.
        strong = s > 1e-9
        for own, theirs in ((u, expected_u), (v, expected_v)):
            torch.testing.assert_close(own[:, strong], theirs[:, strong], atol=1e-8, rtol=1e-8)


def shown(page):
    """Return the numbers of the panel's tables, by the first four letters of their captions."""
    tables = {}
    for figure in page.locator("#panel .hand figure").filter(has=page.locator("table")).all():
        name = figure.locator("figcaption").inner_text()[:4]
        rows = figure.locator("tbody tr").all()
        cells = [row.locator("td") for row in rows]
        if name == "M th":
            numbers = [[float(i.input_value()) for i in c.locator("input").all()] for c in cells]
        else:
            numbers = [[float(text) for text in c.all_inner_texts()] for c in cells]
        tables[name] = torch.tensor(numbers, dtype=torch.float64)
    return tables


def check(page, matrix, k):
    u, s, v = topics(matrix[:7], k)
    tables = shown(page)
    expected = {"M th": matrix, "S th": s[None], "V of": v, "U of": u, "W^Q ": v @ v.T}
    expected["U S "] = u @ s[:k].diag() @ v.T
    assert set(tables) == set(expected)
    for name, numbers in expected.items():
        torch.testing.assert_close(tables[name], numbers, atol=0.0051, rtol=0)  # two decimals
    q = matrix[7] @ v
    key = matrix[8] @ v
    told = page.locator("#panel .told").inner_text()
    assert f"q·k = {q @ key:.2f}" in told
    assert f"x·y = {matrix[7] @ matrix[8]:.2f}" in told


@needs_browser
def test_every_number_is_pythons_also_after_an_edit(page):
    page.goto("/docs")
    page.goto("/inside#panel=lsi")
    field = page.get_by_role("spinbutton", name="P8, Alien")
    field.wait_for()
    headers = page.locator(".editable thead th").all_inner_texts()
    assert headers[1:] == list(MOVIES)
    matrix = torch.cat([RATINGS, P8[None], P9[None]])
    check(page, matrix, 2)
    field.fill("3")
    field.press("Tab")
    page.wait_for_url("**cells=**")
    matrix[7, 1] = 3
    check(page, matrix, 2)
    field = page.get_by_role("spinbutton", name="P1, Titanic")
    field.fill("-1.5")
    field.press("Tab")
    page.get_by_role("spinbutton", name="Topics").fill("3")
    page.get_by_role("spinbutton", name="Topics").press("Tab")
    page.wait_for_url("**k=3**")
    matrix[0, 4] = -1.5
    check(page, matrix, 3)
