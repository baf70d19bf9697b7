"""Our kernel for few rows against the formula in float64, and a row against itself among others."""

import pytest
import torch

from seq2chat.nn.few_rows import FORMATS, FewRows, build, replace_linears


@pytest.fixture(scope="module", autouse=True)
def kernel():
    build()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("d_in", "d_out"), [(1, 1), (7, 5), (32, 64), (33, 40), (100, 77), (384, 130)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_rows_are_products_with_fixed_bits(dtype, d_in, d_out, with_bias):
    """The bits of a row do not depend on the other rows."""
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape).to(dtype) for shape in ((19, d_in), (d_out, d_in), (d_out,))
    )
    linear = FewRows(weight, bias if with_bias else None)
    y = linear(x)
    expected = x.double() @ weight.double().T + (bias.double() if with_bias else 0.0)
    # Each sum has d_in terms of size 1; a bfloat16 answer is rounded to 8 bits.
    torch.testing.assert_close(
        y.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-4
    )
    for n_row in range(1, 19):
        assert torch.equal(linear(x[:n_row]), y[:n_row])
        assert torch.equal(linear(x[-n_row:]), y[-n_row:])


def test_any_shape_and_any_strides_of_x():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 20), torch.randn(20, 3, 4)
    turned = x.permute(1, 2, 0)
    torch.testing.assert_close(FewRows(weight)(turned), turned @ weight.T)
    assert FewRows(weight)(torch.randn(0, 20)).shape == (0, 6)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), None, "d_out, d_in"),
        (torch.zeros(2, 0), torch.zeros(4, 0), None, "d_out, d_in"),
        (torch.zeros(2, 3), torch.zeros(3, 4).T, None, "contiguous weight"),
        (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3), "a bias"),
        (torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.bfloat16), None, "one number format"),
        (torch.zeros(2, 3).double(), torch.zeros(4, 3).double(), None, "float32 or bfloat16"),
    ],
)
def test_what_it_cannot_multiply_is_refused(x, weight, bias, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.seq2chat.few_rows(x, weight, bias)


def test_a_twin_computes_with_the_very_same_weights():
    linears = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Linear(16, 4))
    )
    x, weight = torch.randn(3, 8), linears[0].weight
    expected = linears(x)
    replace_linears(linears)
    assert linears[0].weight is weight and isinstance(linears[2][0], FewRows)
    torch.testing.assert_close(linears(x), expected)
