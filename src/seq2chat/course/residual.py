"""The gradient at the first layer with and without residual connections (He et al. 2015; Vaswani et
al. 2017, section 3.1)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from seq2chat.config import GPTConfig, check
from seq2chat.course.lesson import COLORS, Cell, Lesson, Table, canvas, plain
from seq2chat.models.gpt import GPT, Block, init_weights

DEPTHS = (4, 8, 16, 32, 64)
# Almost zero, as LayerNorm with GPT-2's 1e-5 would shrink streams with a smaller variance.
EPSILON = 1e-20
SHAPE = {"vocab_size": 64, "context": 32, "n_head": 4, "d_model": 64, "norm_eps": EPSILON}
KINDS = {
    "with skips": "x + branch(norm(x))",
    "without skips": "branch(norm(x))",
    "without skips and norms": "branch(x)",
}


def step(
    block: nn.Module, x: Float[Tensor, "batch seq d_model"], kind: str
) -> Float[Tensor, "batch seq d_model"]:
    """Return the output of `block` for `x`: unchanged, without skips around its two branches, or
    also without norms."""
    assert isinstance(block, Block)
    if kind == "with skips":
        return block(x, None, None, None)
    if kind == "without skips":
        x = block.self_attn(block.input_layernorm(x), None, None, None)
        return block.mlp(block.post_attention_layernorm(x))
    return block.mlp(block.self_attn(x, None, None, None))


def gradients(depth: int, kind: str, seed: int) -> list[float]:
    """Return the norm of the gradient at the input of each layer and at the end, `depth + 1`
    numbers.

    The network consists of GPT-2 blocks with GPT-2's initial weights, in float64. Tokens and labels
    are random. `kind` is one of `KINDS`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT(GPTConfig("gpt2", n_layer=depth, **SHAPE)).double()
        init_weights(model)  # again, in float64
        tokens, labels = torch.randint(SHAPE["vocab_size"], (2, 8, SHAPE["context"])).unbind(0)
    x = model.embed_tokens(tokens) + model.get_parameter("embed_positions.weight")
    stream = [x]
    for block in model.layers:
        x = step(block, x, kind)
        stream.append(x)
    logits = model.logits(x if kind == "without skips and norms" else model.norm(x))
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return [_norm(gradient) for gradient in torch.autograd.grad(loss, stream)]


def _norm(x: Tensor) -> float:
    """Return the norm, scaled so that the squares of small numbers don't underflow."""
    largest = x.abs().max()
    return (largest * (x / largest).norm()).item() if largest > 0 else 0.0


def lesson(depths: tuple[int, ...] = DEPTHS, seeds: int = 3) -> Lesson:
    """Return the gradients at the first and the last layer of networks of these depths, for each
    of `KINDS`.

    The numbers are geometric means over the seeds. Raises UserError for a depth or a number of
    seeds below 1.
    """
    check(min(depths, default=0) > 0, f"depths is {depths}; write positive numbers of layers.")
    check(seeds > 0, f"seeds is {seeds}; write a positive number.")
    tables = []
    profiles = {}
    for kind, formula in KINDS.items():
        rows: list[list[Cell]] = []
        for depth in depths:
            norms = zip(*(gradients(depth, kind, seed) for seed in range(seeds)), strict=True)
            profile = profiles[depth, kind] = [_geometric_mean(values) for values in norms]
            rows.append([f"{depth} layers", profile[0], profile[-1], profile[0] / profile[-1]])
        tables.append(
            Table(
                f"{kind}: {formula}: norm of the gradient",
                ["", "at the first layer", "at the end", "ratio"],
                rows,
            )
        )
    notes = [
        (
            "With skips the gradient arrives in full: x + branch(x) has the derivative "
            "1 + branch', where branch' is small."
        ),
        (
            "Without skips and norms it is a product of one small factor per layer. A norm in each "
            "layer compensates for the size of the factors, and so for most of the loss. A 0 is "
            "less than 1e-308, the smallest number in float64. The figure ends at 1e-30."
        ),
    ]
    return Lesson("residual", tables, notes, _draw(profiles, depths))


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0


def _draw(profiles: dict[tuple[int, str], list[float]], depths: tuple[int, ...]) -> Figure:
    figure = canvas(11, 3.8)
    left, right = figure.subplots(1, 2)
    for kind, color in zip(KINDS, COLORS, strict=False):
        ratios = [profiles[depth, kind][0] / profiles[depth, kind][-1] for depth in depths]
        left.plot(depths, ratios, "o-", color=color, label=kind)
        deepest = profiles[max(depths), kind]
        right.plot(range(len(deepest)), deepest, color=color, label=kind)
    left.set_xscale("log", base=2)
    left.set_xticks(depths, [str(depth) for depth in depths])
    plain(left, "gradient at the first layer / at the end", "layers", "ratio")
    plain(
        right,
        f"gradient on the way back through {max(depths)} layers",
        "layer (0: the input)",
        "norm",
    )
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-30)
        axes.legend(fontsize=8)
    return figure
