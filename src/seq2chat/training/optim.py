"""The optimizers: AdamW for embeddings, head and vectors, Muon for the matrices of the blocks."""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seq2chat.config import OptimConfig
from seq2chat.training.sharded_matrices import map_matrices

# Odd quintics a·x + b·x³ + c·x⁵, applied one after the other. Each is the best approximation of 1
# on the singular values that the ones before leave, from 0.003 on (Amsel et al. 2025, "The Polar
# Express", theorem 1), which end between 0.29 and 1.71. Muon's own five rounds of one quintic are
# tighter (Jordan et al. 2024), cost 1.7 times as much, and give no better losses (docs/log.md).
QUINTICS = (
    (7.6229, -18.8865, 13.2407),
    (3.7337, -2.3664, 0.4244),
    (3.4392, -2.3244, 0.4445),
)


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"], dtype: torch.dtype
) -> Float[Tensor, "n rows columns"]:
    """Return approximately U Vᵀ for each matrix U Σ Vᵀ: its singular values become almost 1. The
    computation is in `dtype`."""
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    # Rounding must not take a singular value beyond 1, where the first quintic grows fast.
    x = x / (1.01 * torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in QUINTICS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024) with decoupled weight decay.

    The update is the semi-orthogonal matrix nearest to the Nesterov momentum, scaled by
    max(1, rows/columns)^½.

    Matrices of equal shape are orthogonalized in one batched product, in `dtype`. Where bfloat16 is
    native, that takes half the time of single products in float32. Torch's own Muon always uses
    bfloat16, which is slow elsewhere. Processes that divide the matrices orthogonalize each once.
    """

    def __init__(
        self, params, lr: float, momentum: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append((p, p.grad))
            for pairs in shapes.values():
                self._step(pairs, group)
        return loss

    def _step(self, pairs: list[tuple[nn.Parameter, Tensor]], group: dict) -> None:
        for p, grad in pairs:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            self.state[p]["momentum"].lerp_(grad, 1 - group["momentum"])
        nesterov = [grad.lerp(self.state[p]["momentum"], group["momentum"]) for p, grad in pairs]
        rows, columns = nesterov[0].shape
        lr = group["lr"] * max(1, rows / columns) ** 0.5
        updates = map_matrices(lambda whole: orthogonalize(whole, self.dtype), nesterov)
        for (p, _), update in zip(pairs, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=lr)


def make_optimizers(
    model: nn.Module, config: OptimConfig, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all trained parameters of `model`. The key "peak" of each group is
    its peak learning rate.

    Matrices of the blocks use Muon (or AdamW) with weight decay. Embeddings, an untied output head
    and vectors use fused AdamW without weight decay.
    """
    groups: dict[str, list[nn.Parameter]] = defaultdict(list)
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p in embeddings:
            groups["embedding"].append(p)
        elif name in ("lm_head.weight", "score.weight"):
            groups["head"].append(p)
        else:
            groups["matrix" if p.ndim == 2 else "vector"].append(p)
    adam = [
        {"params": groups[name], "lr": getattr(config, f"{name}_lr"), "weight_decay": 0.0}
        for name in ("embedding", "head", "vector")
        if groups[name]
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if config.matrices == "muon":
        optimizers.append(
            Muon(groups["matrix"], config.matrix_lr, config.momentum, config.weight_decay, dtype)
        )
    else:
        adam.append(
            {
                "params": groups["matrix"],
                "lr": config.matrix_lr,
                "weight_decay": config.weight_decay,
            }
        )
    betas = (config.beta1, config.beta2)
    if adam:
        optimizers.append(
            torch.optim.AdamW(adam, lr=0.0, betas=betas, eps=config.epsilon, fused=True)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
