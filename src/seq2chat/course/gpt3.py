"""GPT-3 (Brown et al. 2020): its parameters and training FLOPs by part, counted on the model
itself."""

import re
from dataclasses import dataclass
from functools import cache

import torch
from matplotlib.figure import Figure

from seq2chat.config import GPT3, GPTConfig
from seq2chat.course.lesson import COLORS, Cell, Lesson, Table, canvas, plain, typeset
from seq2chat.models.gpt import GPT, flops_per_token

TRAINED_TOKENS = 300_000_000_000

# Brown et al. 2020, table 2.2: the tokens of each data set, and its share of the training tokens.
DATA = {
    "Common Crawl (filtered)": (410_000_000_000, 0.60),
    "WebText2": (19_000_000_000, 0.22),
    "Books1": (12_000_000_000, 0.08),
    "Books2": (55_000_000_000, 0.08),
    "Wikipedia": (3_000_000_000, 0.03),
}


# The parts, and patterns for the names of their parameters.
KINDS = {
    "token embedding, also the output head": r"embed_tokens\.weight",
    "position embedding": r"embed_positions\.weight",
    "W^Q, W^K, W^V of all heads": r".*\.[qkv]_proj\.weight",
    "W^O": r".*\.o_proj\.weight",
    "feed-forward, up": r".*\.up_proj\.weight",
    "feed-forward, down": r".*\.down_proj\.weight",
}


@dataclass(frozen=True)
class Part:
    """One kind of tensor: its shape, the number of such tensors, and their parameters together."""

    name: str
    shape: str
    count: int
    parameters: int


@cache
def parts(config: GPTConfig) -> tuple[Part, ...]:
    """Return all parameters of a model with the gpt2 layout by part.

    They are counted on the tensors of a model that is built without memory for its weights.
    """
    with torch.device("meta"):
        rest = dict(GPT(config).named_parameters())
    counted = []
    for name, pattern in KINDS.items():
        group = [rest.pop(key) for key in list(rest) if re.fullmatch(pattern, key)]
        shape = " × ".join(f"{n:,}" for n in reversed(group[0].shape))
        counted.append(Part(name, shape, len(group), sum(p.numel() for p in group)))
    n_rest = sum(p.numel() for p in rest.values())
    return *counted, Part("biases and norms", "", len(rest), n_rest)


def training_flops(config: GPTConfig, n_tokens: int) -> dict[str, float]:
    """Return the floating point operations of training on `n_tokens` by part.

    They are 6 per token and weight of a matrix product (Kaplan et al. 2020, section 2.1), plus
    the attention scores and contexts, which the paper's table leaves out.
    """
    n_parameters = {part.name: part.parameters for part in parts(config)}
    attention = n_parameters["W^Q, W^K, W^V of all heads"] + n_parameters["W^O"]
    forward = n_parameters["feed-forward, up"] + n_parameters["feed-forward, down"]
    head = n_parameters["token embedding, also the output head"]
    whole = flops_per_token(config)
    return {
        "attention, matrices": 6.0 * attention * n_tokens,
        "attention, scores and contexts": (
            float(whole - 6 * (attention + forward + head)) * n_tokens
        ),
        "feed-forward": 6.0 * forward * n_tokens,
        "output head": 6.0 * head * n_tokens,
    }


def lesson() -> Lesson:
    """Return the parameters and FLOPs of the 175B model by part, its data, and the other sizes in
    the paper."""
    config = GPT3["gpt3-175b"]
    model_parts = parts(config)
    total = sum(part.parameters for part in model_parts)
    flops = training_flops(config, TRAINED_TOKENS)
    simple = 6.0 * total * TRAINED_TOKENS
    shape: list[list[Cell]] = [
        ["layers", config.n_layer],
        ["d_model", config.d_model],
        ["d_ff", config.d_ff],
        ["heads", config.n_head],
        ["d_head", config.d_head],
        ["context", config.context],
        ["vocabulary", config.vocab_size],
    ]
    rows: list[list[Cell]] = [
        [p.name, p.shape, p.count, p.parameters, 100 * p.parameters / total] for p in model_parts
    ]
    spent: list[list[Cell]] = [[k, v, 100 * v / sum(flops.values())] for k, v in flops.items()]
    tokens = sum(n for n, _ in DATA.values())
    data: list[list[Cell]] = [[name, n, 100.0 * share] for name, (n, share) in DATA.items()]
    others: list[list[Cell]] = []
    for name, size in GPT3.items():
        n = sum(part.parameters for part in parts(size))
        others.append(
            [
                name,
                size.n_layer,
                size.d_model,
                size.n_head,
                size.d_head,
                n,
                6.0 * n * TRAINED_TOKENS,
            ]
        )
    tables = [
        Table("the shape of GPT-3", ["", ""], shape),
        Table(
            "its parameters",
            ["", "shape of one", "number", "parameters", "%"],
            [*rows, ["all", "", sum(p.count for p in model_parts), total, 100.0]],
            2,
        ),
        Table(
            f"floating point operations of training on {TRAINED_TOKENS:,} tokens",
            ["", "FLOPs", "%"],
            [
                *spent,
                ["all", sum(flops.values()), 100.0],
                ["6 × parameters × tokens, as in the paper", simple, ""],
            ],
            1,
        ),
        Table(
            "its training data",
            ["", "tokens in total", "% of the training tokens"],
            [*data, ["all", tokens, ""]],
            0,
        ),
        Table(
            "the sizes of the paper",
            ["", "layers", "d_model", "heads", "d_head", "parameters", "FLOPs (6 N D)"],
            others,
        ),
    ]
    days = simple / 1e15 / 86400
    n_matrices = sum(part.parameters for part in model_parts[2:6])
    notes = [
        (
            f"{100 * n_matrices / total:.1f} % of the parameters are the matrices of the blocks: "
            "12 n_layer d_model², one third for attention and two thirds for feed-forward."
        ),
        f"At one petaflop per second the training would take {days:,.0f} days.",
        (
            f"Erratum: {tokens / 1e9:.0f}B tokens is the size of the data sets; the model was "
            f"trained on {TRAINED_TOKENS / 1e9:.0f}B (table 2.1): less than once through Common"
            " Crawl, several times Wikipedia."
        ),
        (
            "Erratum: 45 TB is the compressed Common Crawl before filtering; 570 GB remained after "
            "it (section 2.2)."
        ),
    ]
    return Lesson("gpt3", tables, notes, _draw(model_parts, flops, total))


def _draw(model_parts: tuple[Part, ...], flops: dict[str, float], total: int) -> Figure:
    figure = canvas(11, 3.6)
    left, right = figure.subplots(1, 2)
    billions = [part.parameters / 1e9 for part in model_parts]
    bars = left.barh([typeset(part.name) for part in model_parts], billions, color=COLORS[0])
    shares = [f"{100 * part.parameters / total:.2g} %" for part in model_parts]
    left.bar_label(bars, shares, padding=3, fontsize=8)
    plain(left, f"{total:,} parameters", "billions", "")
    spent = right.barh(list(flops), list(flops.values()), color=COLORS[1])
    right.bar_label(
        spent,
        [f"{100 * v / sum(flops.values()):.2g} %" for v in flops.values()],
        padding=3,
        fontsize=8,
    )
    plain(right, f"{sum(flops.values()):.3g} FLOPs for 300B tokens", "FLOPs", "")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.margins(x=0.15)
    return figure
