import math

import torch
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from seq2chat.nn.position import rotary_angles, rotate


def turned(x, position, theta=100.0):
    angles = rotary_angles(torch.tensor([[position]]), x.shape[-1], theta)
    return rotate(x.view(1, 1, 1, -1), angles.double()).flatten()


def test_angles_are_the_papers():
    angles = rotary_angles(torch.tensor([[0, 3]]), 8, theta=10000.0)
    assert angles.shape == (1, 1, 2, 4)
    expected = [3 * 10000.0 ** (-2 * i / 8) for i in range(4)]
    torch.testing.assert_close(angles[0, 0], torch.tensor([[0.0] * 4, expected]))


def test_rotation_is_complex_multiplication_of_the_two_halves():
    torch.manual_seed(0)
    x = torch.randn(8, dtype=torch.float64)
    angles = rotary_angles(torch.tensor([[5]]), 8, 100.0).double().flatten()
    product = torch.complex(x[:4], x[4:]) * torch.polar(torch.ones(4, dtype=torch.float64), angles)
    torch.testing.assert_close(turned(x, 5), torch.cat([product.real, product.imag]))


def test_scores_depend_only_on_distance_and_lengths_are_kept():
    torch.manual_seed(1)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    near = turned(q, 7) @ turned(k, 3)
    assert math.isclose(near, turned(q, 107) @ turned(k, 103), abs_tol=1e-4)  # angles are float32
    assert not math.isclose(near, turned(q, 8) @ turned(k, 3), abs_tol=1e-2)
    assert math.isclose(turned(q, 9).norm(), q.norm(), rel_tol=1e-12)
    assert torch.equal(turned(q, 0), q)


def test_rotation_is_transformers_bit_for_bit():
    torch.manual_seed(2)
    q, k = torch.randn(2, 3, 4, 6, 8)
    angles = rotary_angles(torch.arange(6)[None], 8, 10000.0)
    doubled = torch.cat([angles, angles], dim=-1)[:, 0]
    theirs = apply_rotary_pos_emb(q, k, doubled.cos(), doubled.sin())
    assert torch.equal(rotate(q, angles), theirs[0])
    assert torch.equal(rotate(k, angles), theirs[1])
