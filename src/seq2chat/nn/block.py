"""The position-wise half of a Transformer block in its two shapes, linear maps and norms in any
number format."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """x Wᵀ + b in the number format of the input: float32 weights under bfloat16 activations are
    rounded on the way in.

    Training keeps its weights in float32 this way; on CPUs it is faster than torch.autocast
    (docs/log.md).
    """

    def forward(self, input: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        dtype = input.dtype
        return F.linear(
            input, self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        )


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std, times a weight, plus a bias (Ba et al. 2016), in the number format of x."""

    def forward(self, input: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        return F.layer_norm(
            input,
            self.normalized_shape,
            self.weight.to(input.dtype),
            self.bias.to(input.dtype),
            self.eps,
        )


class RMSNorm(nn.Module):
    """x / rms(x), times a weight (Zhang and Sennrich 2019), computed in at least float32.

    Written out: torch's own takes twice the time backward in bfloat16 on CPUs.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (
            wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight
        ).to(x.dtype)


class FeedForward(nn.Module):
    """down(activation(up(x))) with biases (Vaswani et al. 2017, section 3.3): ReLU then; GELU in
    BERT, and in its tanh form in GPT-2 and GPT-3."""

    def __init__(self, d_model: int, d_ff: int, activation: Literal["relu", "gelu", "gelu_tanh"]):
        super().__init__()
        self.activation = activation
        self.up_proj = Linear(d_model, d_ff)
        self.down_proj = Linear(d_ff, d_model)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        wide = self.up_proj(x)
        if self.activation == "relu":
            return self.down_proj(F.relu(wide))
        return self.down_proj(
            F.gelu(wide, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        )


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) * up(x)) without biases (Shazeer 2020, "GLU Variants Improve
    Transformer")."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.gate_proj = Linear(d_model, d_ff, bias=False)
        self.up_proj = Linear(d_model, d_ff, bias=False)
        self.down_proj = Linear(d_ff, d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
