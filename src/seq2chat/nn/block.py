"""The position-wise parts of a Transformer block: feed-forwards, norms and linear maps."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """x Wᵀ + b, computed in bfloat16 if the input or the weights are, and returned in the number
    format of the input.

    Under bfloat16 activations, float32 weights are rounded on the fly, so training can keep them in
    float32. On CPUs this is faster than torch.autocast (docs/log.md). With bfloat16 weights,
    float32 activations are rounded for the product alone.
    """

    def forward(self, input: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        if self.weight.dtype == torch.bfloat16:
            return F.linear(input.to(torch.bfloat16), self.weight, self.bias).to(input.dtype)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


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

    The formula is written out because the backward pass of torch's own RMSNorm takes twice the time
    in bfloat16 on CPUs.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * inverse_rms * self.weight).to(x.dtype)


class FeedForward(nn.Module):
    """down(activation(up(x))) with biases (Vaswani et al. 2017, section 3.3).

    The activation is ReLU in 2017, GELU in BERT, and the tanh form of GELU in GPT-2 and GPT-3.
    """

    def __init__(self, d_model: int, d_ff: int, activation: Literal["relu", "gelu", "gelu_tanh"]):
        super().__init__()
        self.activation = activation
        self.up_proj = Linear(d_model, d_ff)
        self.down_proj = Linear(d_ff, d_model)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        wide = self.up_proj(x)
        if self.activation == "relu":
            return self.down_proj(F.relu(wide))
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        return self.down_proj(F.gelu(wide, approximate=approximate))


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) * up(x)), usually without biases.

    Shazeer 2020, "GLU Variants Improve Transformer".
    """

    def __init__(self, d_model: int, d_ff: int, bias: bool = False):
        super().__init__()
        self.gate_proj = Linear(d_model, d_ff, bias=bias)
        self.up_proj = Linear(d_model, d_ff, bias=bias)
        self.down_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
