"""Rotary positions (Su et al. 2021, RoFormer, section 3.2) in the half-rotation order of Llama and Qwen.

Learned positions need no code of their own: they are `nn.Embedding(context, d_model)`, added to the tokens'.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rotation = tuple[Float[Tensor, "rows 1 seq d_half"], Float[Tensor, "rows 1 seq d_half"]]


def rotary(
    positions: Int[Tensor, "rows seq"], d_head: int, theta: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows 1 seq {d_head}//2"], Float[Tensor, "rows 1 seq {d_head}//2"]]:
    """Return cosine and sine of position · theta^(-2i/d_head) for i < d_head/2.

    The angles are float32, as published checkpoints were trained with, whatever `dtype` the results have.
    """
    exponents = torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device) / d_head
    angles = (positions[..., None].float() * (1.0 / theta**exponents))[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "batch n_head seq d_head"],
    cos: Float[Tensor, "rows 1 seq d_half"],
    sin: Float[Tensor, "rows 1 seq d_half"],
) -> Float[Tensor, "batch n_head seq d_head"]:
    """Return `x` with each pair (x[i], x[i + d_head/2]) turned by its angle.

    The product of a turned query and a turned key depends only on how far apart they are.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
