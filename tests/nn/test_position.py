import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from seq2chat.nn.position import Frequencies, rotary, rotate, sinusoids


def test_sinusoids_are_the_papers():
    for base, table in {
        10000: sinusoids(torch.arange(50), 6, torch.float64),
        30: sinusoids(torch.arange(50), 6, torch.float64, base=30.0),
    }.items():
        assert table.shape == (50, 6)
        for position in (0, 1, 7, 49):
            for i in range(3):
                angle = position / base ** (2 * i / 6)
                assert math.isclose(table[position, 2 * i], math.sin(angle), abs_tol=1e-12)
                assert math.isclose(table[position, 2 * i + 1], math.cos(angle), abs_tol=1e-12)
    odd = sinusoids(torch.arange(50), 5, torch.float64)
    assert odd.shape == (50, 5)
    assert math.isclose(odd[7, 4], math.sin(7 / 10000 ** (4 / 5)), abs_tol=1e-12)
    far = sinusoids(torch.tensor([1001]), 6, torch.bfloat16)  # bfloat16 has no 1001
    assert torch.equal(far, sinusoids(torch.tensor([1001]), 6, torch.float32).bfloat16())


@given(st.integers(0, 500), st.integers(-200, 200))
def test_sinusoids_rotate_with_the_distance(position, k):
    """A shift by k is a rotation that depends on k alone."""
    here, there = (
        sinusoids(torch.tensor([p]), 8, torch.float64).view(4, 2) for p in (position, position + k)
    )
    angles = k / 10000 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack(
        [cos * here[:, 0] + sin * here[:, 1], cos * here[:, 1] - sin * here[:, 0]], dim=1
    )
    torch.testing.assert_close(there, turned, rtol=0, atol=1e-11)


def turned(x, position, theta=100.0):
    return rotate(
        x.view(1, 1, 1, -1),
        *rotary(torch.tensor([[position]]), Frequencies(x.shape[-1], theta), x.dtype),
    ).flatten()


def test_angles_are_the_papers_and_computed_in_float32():
    positions = torch.tensor([[0, 3]])
    cos, sin = rotary(positions, Frequencies(8, 10000.0), torch.float32)
    assert cos.shape == sin.shape == (1, 1, 2, 4)
    expected = torch.tensor([[0.0] * 4, [3 * 10000.0 ** (-2 * i / 8) for i in range(4)]])
    torch.testing.assert_close(cos[0, 0], expected.cos())
    torch.testing.assert_close(sin[0, 0], expected.sin())
    far = torch.tensor([[1001]])  # bfloat16 has no 1001
    assert torch.equal(
        rotary(far, Frequencies(8, 10000.0), torch.bfloat16)[0],
        rotary(far, Frequencies(8, 10000.0), torch.float32)[0].bfloat16(),
    )


def test_rotation_is_complex_multiplication():
    """The two halves are real and imaginary parts."""
    torch.manual_seed(0)
    x = torch.randn(8, dtype=torch.float64)
    cos, sin = rotary(torch.tensor([[5]]), Frequencies(8, 100.0), torch.float64)
    product = torch.complex(x[:4], x[4:]) * torch.complex(cos, sin).flatten()
    torch.testing.assert_close(turned(x, 5), torch.cat([product.real, product.imag]))


def test_scores_depend_only_on_distance():
    """Rotation keeps lengths."""
    torch.manual_seed(1)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    near = turned(q, 7) @ turned(k, 3)
    assert math.isclose(near, turned(q, 107) @ turned(k, 103), abs_tol=1e-4)  # angles are float32
    assert not math.isclose(near, turned(q, 8) @ turned(k, 3), abs_tol=1e-2)
    assert math.isclose(turned(q, 9).norm(), q.norm(), rel_tol=1e-6)  # so are sine and cosine
    assert torch.equal(turned(q, 0), q)


def test_rotation_is_transformers_bit_for_bit():
    torch.manual_seed(2)
    q, k = torch.randn(2, 3, 4, 6, 8)
    cos, sin = rotary(torch.arange(6)[None], Frequencies(8, 10000.0), torch.float32)
    theirs = apply_rotary_pos_emb(
        q, k, *(torch.cat([half, half], dim=-1)[:, 0] for half in (cos, sin))
    )
    assert torch.equal(rotate(q, cos, sin), theirs[0])
    assert torch.equal(rotate(k, cos, sin), theirs[1])
