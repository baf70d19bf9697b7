import math

import torch
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from seq2chat.nn.position import rotary, rotate


def turned(x, position, theta=100.0):
    return rotate(x.view(1, 1, 1, -1), *rotary(torch.tensor([[position]]), x.shape[-1], theta, x.dtype)).flatten()


def test_angles_are_the_papers_and_computed_in_float32():
    positions = torch.tensor([[0, 3]])
    cos, sin = rotary(positions, 8, 10000.0, torch.float32)
    assert cos.shape == sin.shape == (1, 1, 2, 4)
    expected = torch.tensor([[0.0] * 4, [3 * 10000.0 ** (-2 * i / 8) for i in range(4)]])
    torch.testing.assert_close(cos[0, 0], expected.cos())
    torch.testing.assert_close(sin[0, 0], expected.sin())
    far = torch.tensor([[1001]])  # bfloat16 has no 1001
    assert torch.equal(rotary(far, 8, 10000.0, torch.bfloat16)[0], rotary(far, 8, 10000.0, torch.float32)[0].bfloat16())


def test_rotation_is_complex_multiplication_of_the_two_halves():
    torch.manual_seed(0)
    x = torch.randn(8, dtype=torch.float64)
    cos, sin = rotary(torch.tensor([[5]]), 8, 100.0, torch.float64)
    product = torch.complex(x[:4], x[4:]) * torch.complex(cos, sin).flatten()
    torch.testing.assert_close(turned(x, 5), torch.cat([product.real, product.imag]))


def test_scores_depend_only_on_distance_and_lengths_are_kept():
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
    cos, sin = rotary(torch.arange(6)[None], 8, 10000.0, torch.float32)
    theirs = apply_rotary_pos_emb(q, k, *(torch.cat([half, half], dim=-1)[:, 0] for half in (cos, sin)))
    assert torch.equal(rotate(q, cos, sin), theirs[0])
    assert torch.equal(rotate(k, cos, sin), theirs[1])
