"""Encodings of a token's position.

Sinusoids are added to its embedding (Vaswani et al. 2017, section 3.5). Rotary positions rotate
queries and keys (Su et al. 2021, RoFormer, section 3.2), here in the half-rotation order of Llama
and Qwen. Learned positions need no code: they are an `nn.Embedding(context, d_model)`, which is
added to the token embedding.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

SLOW_WAVES, FAST_WAVES = 1.0, 4.0  # in the original context, of llama3 scaling

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


@dataclass(frozen=True)
class Frequencies:
    """The angles per position of rotary positions: theta^(-2i/d_head) for i < d_head/2, scaled.

    `linear` divides all of them by `factor` (Chen et al. 2023, position interpolation). `llama3`
    divides those whose wave is longer than the original `context`, keeps those with at least four
    waves in it, and interpolates between the two (Grattafiori et al. 2024, section 3.4, as in
    Meta's code).
    """

    d_head: int
    theta: float
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    context: int = 0

    def on(self, device: torch.device) -> Float[Tensor, " d_half"]:
        """Return the frequencies in float32."""
        index = torch.arange(0, self.d_head, 2, dtype=torch.float32, device=device)
        frequencies = 1.0 / self.theta ** (index / self.d_head)
        if self.scaling == "none":
            return frequencies
        if self.scaling == "linear":
            return frequencies / self.factor
        waves = self.context / (2 * math.pi / frequencies)
        share = ((waves - SLOW_WAVES) / (FAST_WAVES - SLOW_WAVES)).clamp(0, 1)
        return (1 - share) * frequencies / self.factor + share * frequencies


def rotary(
    positions: Int[Tensor, "rows seq"], frequencies: Frequencies, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows 1 seq d_half"], Float[Tensor, "rows 1 seq d_half"]]:
    """Return cosine and sine of position times frequency.

    The angles are computed in float32 for every `dtype`, as in the training of published
    checkpoints.
    """
    angles = (positions[..., None].float() * frequencies.on(positions.device))[:, None]
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
