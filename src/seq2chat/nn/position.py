"""Rotary positions (Su et al. 2021, RoFormer, section 3.2) in the half-rotation order of Llama and Qwen.

Learned positions need no code of their own: they are `nn.Embedding(context, d_model)`, added to the tokens'.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_angles(
    positions: Int[Tensor, "rows seq"], d_head: int, theta: float
) -> Float[Tensor, "rows 1 seq {d_head}//2"]:
    """Return position · theta^(-2i/d_head) for i < d_head/2, in float32 as published checkpoints were trained with."""
    exponents = torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device) / d_head
    return (positions[..., None].float() * (1.0 / theta**exponents))[:, None]


def rotate(
    x: Float[Tensor, "batch n_head seq d_head"], angles: Float[Tensor, "rows 1 seq d_half"]
) -> Float[Tensor, "batch n_head seq d_head"]:
    """Return `x` with each pair (x[i], x[i + d_head/2]) turned by its angle.

    The product of a turned query and a turned key depends only on how far apart they are.
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
