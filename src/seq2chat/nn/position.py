"""Encodings of a token's position.

Sinusoids are added to its embedding (Vaswani et al. 2017, section 3.5). Rotary positions rotate
queries and keys (Su et al. 2021, RoFormer, section 3.2), here in the half-rotation order of Llama
and Qwen. Learned positions need no code: they are an `nn.Embedding(context, d_model)`, which is
added to the token embedding.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rotation = tuple[Float[Tensor, "rows 1 seq d_half"], Float[Tensor, "rows 1 seq d_half"]]


def sinusoids(
    positions: Int[Tensor, " seq"], d_model: int, dtype: torch.dtype, base: float = 10_000.0
) -> Float[Tensor, "seq {d_model}"]:
    """Return sin(position / base^(2i/d_model)) at 2i and the cosine of the same at 2i + 1.

    A shift by k positions rotates each such pair by an angle that depends only on k. So a linear
    map can find the token k positions away. Computed in at least float32.
    """
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, d_model, 2, dtype=wide, device=positions.device) / d_model
    angles = positions[:, None] / base**exponents
    # With an odd width the last sine has no cosine.
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model].to(dtype)


def rotary(
    positions: Int[Tensor, "rows seq"], d_head: int, theta: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows 1 seq {d_head}//2"], Float[Tensor, "rows 1 seq {d_head}//2"]]:
    """Return cosine and sine of position · theta^(-2i/d_head) for i < d_head/2.

    The angles are computed in float32 for every `dtype`, as in the training of published
    checkpoints.
    """
    exponents = torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device) / d_head
    angles = (positions[..., None].float() * (1.0 / theta**exponents))[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "batch n_head seq d_head"],
    cos: Float[Tensor, "rows 1 seq d_half"],
    sin: Float[Tensor, "rows 1 seq d_half"],
) -> Float[Tensor, "batch n_head seq d_head"]:
    """Return `x` with each pair (x[i], x[i + d_head/2]) rotated by its angle.

    The product of a rotated query and a rotated key depends only on their distance.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
