"""Weights as 8-bit integers, for products whose time is spent on reading memory.

They take a quarter of float32's memory and half of bfloat16's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """x Wᵀ + b, where W is stored as integers from -127 to 127 with one scale per output.

    A scale is the largest magnitude of its row divided by 127: row-wise absmax quantization of the
    weights alone (Dettmers et al. 2022, LLM.int8(), section 2). The shapes are `weight` (d_out,
    d_in), `scale` (d_out,) and `bias` (d_out,).

    In bfloat16 the product is torch's own, which reads the integers. `plain` is its twin.
    torch.compile would turn `plain` into that product, but not for a variable number of rows.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
    ) -> None:
        super().__init__()
        wide = weight.detach().float()
        # The scale is rounded to its number format first, so that the integers fit the rounded one.
        scale = (wide.abs().amax(dim=1) / 127).to(weight.dtype)
        nonzero = scale.float().where(scale > 0, 1.0)
        self.register_buffer(
            "weight", (wide / nonzero[:, None]).round().clamp(-127, 127).to(torch.int8)
        )
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        if x.dtype != torch.bfloat16:
            return self.plain(x)
        product = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
        product = product.unflatten(0, x.shape[:-1])
        return product if self.bias is None else product + self.bias

    def plain(self, x: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        """Reference implementation of `forward`."""
        product = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias.to(x.dtype)


def quantized(linear: nn.Linear) -> Int8Linear:
    """Return `linear` with its weights rounded to 8 bits."""
    return Int8Linear(linear.weight, linear.bias)
