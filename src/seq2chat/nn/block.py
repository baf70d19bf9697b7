"""The position-wise parts of a Transformer block: feed-forwards, norms and linear maps."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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

    The backward pass is written out too. It keeps the input in its own format and one number per
    row, where autograd keeps two wide copies. Torch's own RMSNorm takes twice the time in bfloat16
    on CPUs. A compiler gets the plain formula, which it fuses itself.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        if torch.compiler.is_compiling():
            return rms_norm(x, self.weight, self.eps)[0]
        return _RMSNorm.apply(x, self.weight, self.eps)


def rms_norm(
    x: Float[Tensor, "*shape width"], weight: Float[Tensor, " width"], eps: float
) -> tuple[Float[Tensor, "*shape width"], Float[Tensor, "*shape 1"]]:
    """Return x / rms(x), times the weight, and 1 / rms(x). This is the plain twin of `RMSNorm`."""
    wide = _wide(x)
    inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight).to(x.dtype), inverse_rms


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, inverse_rms = rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse_rms)
        return normed

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]  # the decorator hides its names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad = _wide(grad_outputs[0])
        normed = _wide(x) * inverse_rms
        rows = tuple(range(x.ndim - 1))
        weight_grad = (grad * normed).sum(rows) if needs_weight else None
        if not needs_x:
            return None, weight_grad, None
        grad = grad * weight
        along = (grad * normed).mean(-1, keepdim=True)  # what would only change the size of x
        return ((grad - normed * along) * inverse_rms).to(x.dtype), weight_grad, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


def gated(
    gate: Float[Tensor, "*shape d_ff"], up: Float[Tensor, "*shape d_ff"]
) -> Float[Tensor, "*shape d_ff"]:
    """Return SiLU(gate) * up. The backward pass computes SiLU(gate) again instead of keeping it."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    return _Gated.apply(gate, up)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]  # the decorator hides its names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grad_outputs
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)
