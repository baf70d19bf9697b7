"""The hook that checks shapes: what it lets pass, and what it stops."""

from dataclasses import dataclass

import pytest
import shapes
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int
from torch import Tensor, nn

from seq2chat.nn.block import RMSNorm

ROWS = torch.zeros(2, 3)


@shapes.checked
def add(
    x: Float[Tensor, "rows width"], bias: Float[Tensor, " width"]
) -> Float[Tensor, "rows width"]:
    return (x + bias)[: len(bias)]


@shapes.checked
def last(x: Float[Tensor, "*shape width"], y: Float[Tensor, "*shape"]) -> Float[Tensor, "2 ..."]:
    return x


@shapes.checked
def counted(n: int = 3) -> Int[Tensor, "{n}"]:
    return torch.arange(max(n, 2))


@shapes.checked
@dataclass(frozen=True)
class Pair:
    left: Float[Tensor, "rows width"]
    right: Float[Tensor, "rows width"]


@pytest.mark.parametrize("repeated", [1, 3])  # an annotation is checked faster from the second time
def test_tensors_that_fit_pass(repeated):
    for _ in range(repeated):
        assert add(ROWS, torch.zeros(3)).shape == (2, 3)
        assert last(ROWS, torch.zeros(2)) is ROWS
        assert last(torch.zeros(2, 1, 5), nn.Parameter(torch.zeros(2, 1))).ndim == 3
        assert len(counted()) == 3 and len(counted(2)) == 2
        assert Pair(ROWS, ROWS).left is ROWS


@pytest.mark.parametrize(
    "call",
    [
        lambda: add(ROWS, torch.zeros(4)),
        lambda: add(ROWS, torch.zeros(1, 3)),
        lambda: add(ROWS.long(), torch.zeros(3)),
        lambda: add(ROWS, [0.0] * 3),
        lambda: add(torch.zeros(4, 3), torch.zeros(3)),  # it returns three rows of the four
        lambda: last(ROWS, torch.zeros(3)),
        lambda: last(torch.zeros(()), torch.zeros(2)),
        lambda: last(torch.zeros(3, 3), torch.zeros(3)),
        lambda: counted(1),
        lambda: counted("3"),
        lambda: Pair(ROWS, torch.zeros(2, 4)),
    ],
)
def test_tensors_that_do_not_fit_are_stopped(call):
    test_tensors_that_fit_pass(2)
    with pytest.raises(BeartypeCallHintViolation):
        call()
    test_tensors_that_fit_pass(1)


def test_the_package_is_checked():
    with pytest.raises(BeartypeCallHintViolation):
        RMSNorm(4, 1e-6)(torch.zeros(2, 3, 4, dtype=torch.int64))
