"""GPT-3 (Brown et al. 2020): where its parameters and its training FLOPs are, counted on the model
itself."""

import re
from dataclasses import dataclass
from functools import cache

import torch
from matplotlib.figure import Figure

from seq2chat.config import GPT3, GPTConfig
from seq2chat.course.lesson import COLOURS, Cell, Lesson, Table, canvas, plain, typeset
from seq2chat.models.gpt import GPT, flops_per_token

TRAINED_TOKENS = 300_000_000_000

# Brown et al. 2020, table 2.2: the tokens of each data set, and its share of what was trained on.
DATA = {
    "Common Crawl (filtered)": (410_000_000_000, 0.60),
    "WebText2": (19_000_000_000, 0.22),
    "Books1": (12_000_000_000, 0.08),
    "Books2": (55_000_000_000, 0.08),
    "Wikipedia": (3_000_000_000, 0.03),
}


# Names of parts, and of the parameters they are.
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
    """One kind of tensor: its shape, how many of it there are, and the parameters of all
    together."""

    name: str
    shape: str
    count: int
    parameters: int


@cache
def parts(config: GPTConfig) -> tuple[Part, ...]:
    """Return where the parameters of a gpt2-layout model are; their sum is all of them.

    The model is built without memory for its weights, and what is counted are its own tensors.
    """
    with torch.device("meta"):
        rest = dict(GPT(config).named_parameters())
    found = []
    for name, pattern in KINDS.items():
        group = [rest.pop(key) for key in list(rest) if re.fullmatch(pattern, key)]
        shape = " × ".join(f"{n:,}" for n in reversed(group[0].shape))
        found.append(Part(name, shape, len(group), sum(p.numel() for p in group)))
    return *found, Part("biases and norms", "", len(rest), sum(p.numel() for p in rest.values()))


def training_flops(config: GPTConfig, n_tokens: int) -> dict[str, float]:
    """Return the floating point operations of training on `n_tokens`, by what they go into.

    6 for each weight of a matrix product and token (Kaplan et al. 2020, section 2.1), and those of
    the attention scores and contexts, which the paper's own table leaves out.
    """
    at = {part.name: part.parameters for part in parts(config)}
    attention = sum(at[name] for name in ("W^Q, W^K, W^V of all heads", "W^O"))
    forward = sum(at[name] for name in ("feed-forward, up", "feed-forward, down"))
    head = at["token embedding, also the output head"]
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
    """Return the 175B model's parameters and FLOPs by part, its data, and the other sizes of the
    paper."""
    config = GPT3["gpt3-175b"]
    found = parts(config)
    total = sum(part.parameters for part in found)
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
        [p.name, p.shape, p.count, p.parameters, 100 * p.parameters / total] for p in found
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
            "where its parameters are",
            ["", "shape of one", "number", "parameters", "%"],
            [*rows, ["all", "", sum(p.count for p in found), total, 100.0]],
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
            "what it was trained on",
            ["", "tokens there are", "% of the tokens seen"],
            [*data, ["all", tokens, ""]],
            0,
        ),
        Table(
            "the sizes of the paper",
            ["", "layers", "d_model", "heads", "d_head", "parameters", "FLOPs (6 N D)"],
            others,
        ),
    ]
    seconds = simple / 1e15 / 86400
    notes = [
        (
            f"{100 * sum(p.parameters for p in found[2:6]) / total:.1f} % of the parameters are the"
            " blocks' matrices: 12 n_layer d_model², a third of it attention and two thirds "
            "feed-forward."
        ),
        f"At one petaflop a second the training would take {seconds:,.0f} days.",
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
    return Lesson("gpt3", tables, notes, _draw(found, flops, total))


def _draw(found: tuple[Part, ...], flops: dict[str, float], total: int) -> Figure:
    figure = canvas(11, 3.6)
    left, right = figure.subplots(1, 2)
    bars = left.barh(
        [typeset(p.name) for p in found], [p.parameters / 1e9 for p in found], color=COLOURS[0]
    )
    left.bar_label(
        bars, [f"{100 * p.parameters / total:.2g} %" for p in found], padding=3, fontsize=8
    )
    plain(left, f"{total:,} parameters", "billions", "")
    spent = right.barh(list(flops), list(flops.values()), color=COLOURS[1])
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
