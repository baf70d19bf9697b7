"""AdamW for embeddings, head and vectors; Muon for the matrices inside the blocks."""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seq2chat.config import OptimConfig

# Quintic of Newton–Schulz whose slope at 0 is steepest (Jordan et al. 2024, "Muon"): five rounds
# bring every singular value of a matrix of norm 1 into about [0.7, 1.2].
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"], dtype: torch.dtype, rounds: int = 5
) -> Float[Tensor, "n rows columns"]:
    """U Vᵀ, nearly, for each matrix U Σ Vᵀ: all its singular values moved close to 1, in the number
    format `dtype`."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): the update is the nearest semi-orthogonal
    matrix to the Nesterov momentum, scaled by max(1, rows/columns)^½, with decoupled weight decay.

    Matrices of one shape are orthogonalised in one batched product, in `dtype`: half the time of
    one by one in float32 where bfloat16 is native, and far from torch's own Muon, which is always
    bfloat16, where it is not.
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
        nesterov = torch.stack(
            [grad.lerp(self.state[p]["momentum"], group["momentum"]) for p, grad in pairs]
        )
        rows, columns = nesterov.shape[1:]
        lr = group["lr"] * max(1, rows / columns) ** 0.5
        for (p, _), update in zip(pairs, orthogonalize(nesterov, self.dtype), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=lr)


def make_optimizers(
    model: nn.Module, config: OptimConfig, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Optimizers over every parameter of `model` that is trained, once. Each group keeps its peak
    rate under "peak".

    Matrices of the blocks go to Muon (or AdamW), embeddings, an untied output head and vectors to
    fused AdamW; only the blocks' matrices decay.
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
