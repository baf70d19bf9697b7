"""Low-rank adapters of linear maps (Hu et al. 2021, LoRA, section 4.1)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from seq2chat.nn.block import Linear


class LoRALinear(Linear):
    """x Wᵀ + b + α/r · x Aᵀ Bᵀ with frozen W and b.

    B starts at zero, so that nothing changes before training. The gradients of W, which cost as
    much as those of x, are never computed. Under bfloat16 activations W is rounded once.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        weight = linear.weight
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = weight
        self.bias = linear.bias
        self.scale = alpha / rank
        # By format. A reference policy shares it.
        self.rounded: dict[torch.dtype, Tensor] = {}
        like = {"dtype": weight.dtype, "device": weight.device}
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, input: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        if input.dtype not in self.rounded:
            # The first use may be a generation, whose tensors can't be part of a backward pass.
            with torch.inference_mode(False), torch.no_grad():
                self.rounded[input.dtype] = self.weight.detach().to(input.dtype)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        low = F.linear(input, self.lora_a.to(input.dtype))
        update = F.linear(low, (self.scale * self.lora_b).to(input.dtype))
        return F.linear(input, self.rounded[input.dtype], bias) + update

    def merged_weight(self) -> Float[Tensor, "d_out d_in"]:
        """Return W + α/r · B A."""
        return self.weight + self.scale * (self.lora_b @ self.lora_a)


class Shifted(nn.Module):
    """W with a trained offset on some of its rows, which starts at zero."""

    def __init__(self, weight: Tensor, rows: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows, device=weight.device))
        self.shift = nn.Parameter(
            torch.zeros(len(rows), weight.shape[1], dtype=weight.dtype, device=weight.device)
        )

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return weight.index_add(0, self.rows, self.shift)
