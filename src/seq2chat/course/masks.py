"""GPT's causal attention mask against BERT's full one (Radford et al. 2018; Devlin et al. 2018,
figure 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64
from matplotlib.figure import Figure
from torch import Tensor

from seq2chat.config import BERTConfig, GPTConfig, check
from seq2chat.course import SENTENCE
from seq2chat.course.lesson import Lesson, canvas, heat_map, matrix
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.nn.mask import causal_mask

LAYERS = 2
HEADS = 2
WIDTH = 16
VOCABULARY = 64


def influence(model: GPT | BERT, n: int, seed: int = 0) -> Float64[Tensor, "{n} {n}"]:
    """Return the largest change of the logits at position i (row) when token j (column) is
    replaced by another.

    It is measured on `model` with random tokens, and exactly zero if i cannot attend to j.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    tokens = torch.randint(vocabulary, (1, n), generator=generator)
    others = tokens.repeat(n, 1)
    others[range(n), range(n)] = (others[range(n), range(n)] + 1) % vocabulary
    with torch.no_grad():
        moved = (model.eval()(others) - model(tokens)).abs().amax(-1)
    return moved.T.double()


@torch.no_grad()
def small_models(seed: int = 0) -> tuple[GPT, BERT]:
    """Return a GPT and a BERT of the same shape with random weights in float64."""
    shape = {
        "vocab_size": VOCABULARY,
        "context": 64,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "d_model": WIDTH,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models = GPT(GPTConfig("gpt2", **shape)).double(), BERT(BERTConfig(**shape)).double()
        for parameter in (p for model in models for p in model.parameters() if p.ndim > 1):
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return models


def lesson(text: str = SENTENCE) -> Lesson:
    """Return both masks over the words of `text`, and their effect measured on a GPT and a BERT."""
    words = text.split()
    check(0 < len(words) <= 64, f"The text has {len(words)} words; write between 1 and 64.")
    masks = (
        causal_mask(len(words), len(words)),
        torch.ones(len(words), len(words), dtype=torch.bool),
    )
    moved = [influence(model, len(words)) for model in small_models()]
    tables = [
        matrix("GPT: position (row) may attend to (column)", words, words, masks[0].int()),
        matrix("BERT: the same", words, words, masks[1].int()),
        matrix(
            "GPT: change of the logits at (row) when the token at (column) changes",
            words,
            words,
            moved[0],
        ),
        matrix("BERT: the same", words, words, moved[1]),
    ]
    notes = [
        (
            "GPT predicts the next token, so a position must not see the following ones: above the "
            "diagonal nothing changes, and all positions of a text can be trained at once."
        ),
        "BERT fills gaps, so every position sees both sides. It cannot write from left to right.",
    ]
    return Lesson("masks", tables, notes, _draw(words, masks, moved))


def _draw(
    words: Sequence[str], masks: tuple[Bool[Tensor, "n n"], ...], moved: list[Tensor]
) -> Figure:
    figure = canvas(12, 3.4)
    digits = 2 if len(words) <= 8 else None
    row = figure.subplots(1, 4)
    for axes, mask, name in zip(row, masks, ("GPT's mask", "BERT's mask"), strict=False):
        heat_map(
            axes,
            mask.int(),
            rows=words,
            columns=words,
            title=f"{name} (1: may attend)",
            digits=None if digits is None else 0,
        )
        axes.images[0].set_clim(0, 1)
    for axes, change, name in zip(row[2:], moved, ("GPT", "BERT"), strict=True):
        heat_map(
            axes,
            change,
            rows=words,
            columns=words,
            title=f"{name}: change of the logits",
            digits=digits,
        )
    for axes in row:
        axes.tick_params(axis="x", rotation=45)
    return figure
