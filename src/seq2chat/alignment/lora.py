"""LoRA: the matrices of the blocks are frozen, and a low-rank update of each is trained (Hu et al.
2021, section 4.1)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seq2chat.models.gpt import GPT


class LowRank(nn.Module):
    """W → W + α/r · B A, with α twice the rank. B starts at zero, so that nothing changes before
    training."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = 2.0
        self.a = nn.Parameter(torch.empty(rank, columns, dtype=weight.dtype, device=weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return weight + self.scale * (self.b @ self.a)


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


def add_lora(model: GPT, rank: int, tokens: Sequence[int] = ()) -> None:
    """Freeze `model`, and add trainable adapters of this rank to the matrices of its blocks.

    The embeddings and head rows of `tokens` are trained too. New control tokens start with equal
    embeddings, and adapters in the blocks alone could never learn to distinguish the end of an
    answer from the start of a turn.
    """
    model.requires_grad_(False)
    if tokens:
        for module in (model.embed_tokens, model.lm_head):
            if module is not None:  # a tied head is the embedding
                parametrize.register_parametrization(
                    module, "weight", Shifted(module.weight, tokens)
                )
    for module in model.layers.modules():
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


@torch.no_grad()
def merged(model: GPT) -> GPT:
    """Return a copy of `model` with its adapters added to its matrices: an ordinary GPT with the
    same logits."""
    state = {
        key: tensor for key, tensor in model.state_dict().items() if ".parametrizations." not in key
    }
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            state[f"{name}.weight"] = module.weight
    # The fresh weights are replaced at once, so drawing them must not advance the random state.
    with torch.random.fork_rng(devices=[]):
        plain = GPT(model.config).to(model.device, next(model.parameters()).dtype)
    plain.load_state_dict(state)
    plain.compute_dtype = model.compute_dtype
    return plain.eval()
