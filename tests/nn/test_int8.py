"""8-bit weights: close to the original linear map, and the same product when compiled."""

import pytest
import torch
from torch import nn

from seq2chat.nn.int8 import Int8Linear, quantized


def test_every_weight_is_within_half_a_step():
    torch.manual_seed(0)
    weight = torch.randn(32, 64) * torch.logspace(-3, 3, 32)[:, None]
    linear = Int8Linear(weight)
    assert linear.weight.dtype == torch.int8 and linear.weight.abs().amax(1).eq(127).all()
    kept = linear.weight * linear.scale[:, None]
    assert (kept - weight).abs().le(0.5001 * linear.scale[:, None]).all()


def test_the_product_is_that_of_the_weights_it_keeps():
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, dtype=torch.float64)
    small, x = quantized(linear), torch.randn(3, 5, 64, dtype=torch.float64)
    kept = small.weight * small.scale[:, None]
    torch.testing.assert_close(small(x), x @ kept.T + linear.bias)
    assert (small(x) - linear(x)).norm() < 0.01 * linear(x).norm()


def test_a_row_of_zeros_stays_one():
    assert Int8Linear(torch.zeros(2, 8))(torch.ones(1, 8)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_round_as_the_weights_do(dtype):
    torch.manual_seed(0)
    weight = torch.randn(128, 64).to(dtype)
    linear = Int8Linear(weight)
    assert linear.scale.dtype == dtype
    error = (
        linear.weight.float() * linear.scale.float()[:, None] - weight.float()
    ).norm() / weight.float().norm()
    assert error < 0.01


def test_the_product_in_bfloat16_is_that_of_its_twin():
    torch.manual_seed(0)
    linear = quantized(nn.Linear(64, 128, dtype=torch.bfloat16))
    x = torch.randn(4, 3, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(linear(x), linear.plain(x), rtol=0.02, atol=0.02)
